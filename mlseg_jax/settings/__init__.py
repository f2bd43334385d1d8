"""Tables and defaults that recipes and library share; `configs/` is built from them."""
