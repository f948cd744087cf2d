"""Live page: a camera's faces in a browser, and ``POST /detect``. See ``img2pose-edge live --help``."""
