"""The HTTP service on Ray Serve: plain classes, bound into deployments in `app.py` alone."""
