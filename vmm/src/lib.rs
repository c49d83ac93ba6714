//! A running virtual machine.
