"""What people see: figures as plain dicts, their colours and words, and the screens that show them."""
