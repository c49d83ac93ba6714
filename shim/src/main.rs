//! `containerd-shim-kata-v2`: every pod in a QEMU virtual machine of its own.
//!
//! containerd runs this program three ways: `start` makes a shim and prints its address ([`bootstrap`]), no action
//! at all *is* the shim ([`serve`]), and `delete` clears up after a shim that died ([`cleanup`]). Operators run
//! `factory` ([`factory`]), storage drivers `direct-volume` ([`direct`]).

mod bootstrap;
mod cache;
mod cleanup;
mod cli;
mod container;
mod error;
mod events;
mod factory;
#[cfg(test)]
mod fakes;
mod hooks;
mod ids;
mod logging;
mod management;
mod memory;
mod metrics;
mod network;
mod oom;
mod pidfd;
mod process;
mod sandbox;
mod sandbox_api;
mod serve;
mod service;
mod stdio;
mod table;
mod thread;

use std::process::ExitCode;

use nix::sys::stat::{Mode, umask};

use cli::Action;
use container::direct;

fn main() -> ExitCode {
    // Nothing this program makes is for other users to read, whatever umask it was started with.
    umask(Mode::from_bits_truncate(0o077));
    let outcome = match cli::parse(std::env::args_os().skip(1)) {
        Ok(Action::Print(text)) => cli::print(&text),
        Ok(Action::Start(flags)) => bootstrap::start(&flags),
        Ok(Action::Delete(flags)) => cleanup::delete(&flags),
        Ok(Action::Serve(flags)) => serve::run(&flags),
        Ok(Action::Factory(factory)) => factory::run(&factory),
        Ok(Action::DirectVolume(volume)) => direct::command::run(&volume),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
