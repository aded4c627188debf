"""How good a shield is: labelled texts through RunShield, figures with their intervals, curves."""
