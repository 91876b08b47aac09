"""Text as it comes in and as it goes out: strict JSON, and what a terminal may show."""
