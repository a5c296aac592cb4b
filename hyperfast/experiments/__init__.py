"""The training code of the papers, one folder each, and the demo."""
