"""What a model retrieves in a document: the selections, and a page and a picture of them."""
