"""The tests of snapctl; folders mirror the package, `support` holds what they share."""
