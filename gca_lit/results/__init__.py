"""Files of results, and the tables and pictures made of them."""
