"""What is measured of generated networks, whatever generated them (Deutsch, section 4.2)."""
