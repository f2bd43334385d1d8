"""Pure, unreduced losses; `reduce` applies mask, weight and denominator once."""
