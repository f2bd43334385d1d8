"""Networks: from pictures to label scores, a selection and logits over ranks."""
