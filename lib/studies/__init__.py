"""What only one study needs, a folder or a file each."""
