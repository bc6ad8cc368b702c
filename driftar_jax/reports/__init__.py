"""What is written about results: tables, pages, plots."""
