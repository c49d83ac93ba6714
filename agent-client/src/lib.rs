//! How the host asks the guest.
