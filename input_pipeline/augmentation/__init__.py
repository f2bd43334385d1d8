"""What happens to a picture and its labels before they become a batch."""
