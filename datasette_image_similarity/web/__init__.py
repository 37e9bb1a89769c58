"""Pages, pictures and permissions in Datasette, over `query.py` and `images.py`."""
