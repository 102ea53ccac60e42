"""What AuthVital says, and why it is believed: its keys, and the signatures made with them."""
