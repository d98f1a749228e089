"""Images from files, bytes and addresses: opened, measured, decoded and downloaded within limits, in one place."""
