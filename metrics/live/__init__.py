"""What a running job publishes, and the dashboard that shows it."""
