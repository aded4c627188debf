"""Tools that models call: registered in groups, checked before they run, run in sandboxes."""
