"""What the guard providers compute without calling anybody: prompts, windows, replies, scores, scanners."""
