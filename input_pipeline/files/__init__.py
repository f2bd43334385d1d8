"""Files that people have: pictures, masks, archives, copies of what lies elsewhere."""
