"""How good a shield is: labelled texts through RunShield, figures with their intervals, curves."""

from services.safety.evaluate.evaluation import run

__all__ = ["run"]
