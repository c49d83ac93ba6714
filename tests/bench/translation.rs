//! What QEMU's translator has of the guest's code: how much it has translated, and having it forget all of it.
//!
//! Only an emulated processor has one. QEMU tells of it on a monitor, and drops every translated block when a debugger
//! steps the processor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};
use tests::case::PATIENCE;
use tests::{Context, Result, check};

/// The translator of one machine, asked over a monitor of its own.
///
/// Asking blocks, and QEMU, to stop the guest, waits for the vsock device: whoever serves that one asks from elsewhere.
pub(crate) struct Translator(BufReader<UnixStream>);

impl Translator {
    /// `monitor` is where a QEMU listens for QMP. None where the processor is not emulated.
    pub(crate) fn of(monitor: &Path) -> Result<Option<Self>> {
        let stream = UnixStream::connect(monitor)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut translator = Self(BufReader::new(stream));
        translator.ask("qmp_capabilities", &json!({}))?;
        let emulates = translator.ask("query-kvm", &json!({}))?["enabled"] == json!(false);
        Ok(emulates.then_some(translator))
    }

    /// Blocks of guest code translated and not forgotten.
    pub(crate) fn blocks(&mut self) -> Result<f64> {
        let text = self.human("info jit")?;
        let count = text.lines().find_map(|line| line.strip_prefix("TB count"));
        Ok(count.context("the number of blocks")?.trim().parse()?)
    }

    /// Forgets all blocks. The guest stands still meanwhile; nothing else of it changes.
    pub(crate) fn forget(&mut self, socket: &Path) -> Result<()> {
        let path = socket.to_str().context("a path in UTF-8")?;
        self.human(&format!("gdbserver unix:{path},server=on,wait=off"))?;
        let mut debugger = UnixStream::connect(socket)?;
        debugger.set_read_timeout(Some(PATIENCE))?;
        packet(&mut debugger, "?", "T05")?;
        // With interrupts and timers, or an idle processor would never come to its next instruction.
        packet(&mut debugger, "Qqemu.sstep=1", "OK")?;
        packet(&mut debugger, "s", "T05")?;
        packet(&mut debugger, "D", "OK")?;
        self.human("gdbserver none")?;
        Ok(())
    }

    fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.ask("human-monitor-command", &json!({"command-line": line}))?;
        Ok(answer.as_str().context("a text")?.to_owned())
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        writeln!(self.0.get_mut(), "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            check!(answer.get("error").is_none(), "{command}: {line}");
        }
    }
}

/// Sends one packet of the remote debugging protocol and waits for an answer that begins as wanted.
fn packet(debugger: &mut UnixStream, data: &str, wanted: &str) -> Result<()> {
    let sum = data.bytes().fold(0_u8, u8::wrapping_add);
    write!(debugger, "+${data}#{sum:02x}")?;
    while !answer(debugger)?.starts_with(wanted) {}
    Ok(())
}

/// The next packet, without its frame.
fn answer(debugger: &mut UnixStream) -> Result<String> {
    let mut text = String::new();
    let mut byte = [0];
    while byte[0] != b'$' {
        debugger.read_exact(&mut byte)?;
    }
    loop {
        debugger.read_exact(&mut byte)?;
        if byte[0] == b'#' {
            debugger.read_exact(&mut [0; 2])?;
            return Ok(text);
        }
        text.push(byte[0].into());
    }
}
