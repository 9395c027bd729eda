"""The lifecycle, the placement and two or three backends, explored exhaustively to a bounded depth."""
