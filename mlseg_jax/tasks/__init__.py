"""One task = one loss, one evaluation, one kind of result; and the table of them."""
