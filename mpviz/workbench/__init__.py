"""One state for every screen: what is looked at, what is slid, what runs in the background."""
