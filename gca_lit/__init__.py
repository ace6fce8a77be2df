"""gca_lit: a PyTorch Lightning template for length-generalizable attention."""

__version__ = "0.1.0"
