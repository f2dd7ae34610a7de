"""The commands' home, where Django looks for it."""
