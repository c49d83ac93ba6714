//! A small program that the kernel asks, in one network namespace, which socket a new connection is for. It gives those
//! to localhost to ours, whatever their port is, and goes with the descriptor that holds it.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::libc;

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

/// Operation codes, see the kernel's "BPF instruction set" document.
mod code {
    pub(super) const LOAD: u8 = 0x61;
    pub(super) const STORE: u8 = 0x62;
    pub(super) const COPY: u8 = 0xbf;
    pub(super) const SET: u8 = 0xb7;
    pub(super) const ADD: u8 = 0x07;
    /// Of two instructions.
    pub(super) const SET_LONG: u8 = 0x18;
    pub(super) const JUMP: u8 = 0x05;
    pub(super) const JUMP_IF: u8 = 0x15;
    /// Of the lower half of a register.
    pub(super) const JUMP_IF_NOT: u8 = 0x56;
    pub(super) const CALL: u8 = 0x85;
    pub(super) const EXIT: u8 = 0x95;
}

/// Registers: what a call returns and the verdict, the arguments of a call, what calls leave alone, and the stack's end.
const RESULT: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;

/// Where the context (`struct bpf_sk_lookup`) has what the program looks at.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const REMOTE_V4: i16 = 16;
const LOCAL_V4: i16 = 40;
const LOCAL_V6: [i16; 4] = [44, 48, 52, 56];

/// What the program calls (`BPF_FUNC_*`).
const MAP_LOOKUP: i32 = 1;
const RELEASE: i32 = 86;
const ASSIGN: i32 = 124;

/// In a `SET_LONG`: the value is a map's descriptor.
const IS_MAP: u8 = 1;
/// `SK_PASS`: the kernel goes on, with the socket it was given, if it was given one.
const PASS: i32 = 1;

/// The addresses as the context has them.
const LOCALHOST_V4: i32 = 0x7f00_0001_u32.to_be().cast_signed();
const LOCALHOST_V6: [i32; 4] = [0, 0, 0, 1_u32.to_be().cast_signed()];

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: to | (from << 4), offset, value }
}

/// Where a map has the socket of each family.
const V4: i32 = 0;
const V6: i32 = 1;

/// The program; `map` has the sockets. What does not concern it passes, so that the kernel looks as ever.
fn program(map: RawFd) -> Vec<Instruction> {
    use code::{ADD, CALL, COPY, EXIT, JUMP, JUMP_IF, LOAD, SET, SET_LONG, STORE};
    let is = |at: i16, value: i32| {
        [instruction(LOAD, SECOND, CONTEXT, at, 0), instruction(code::JUMP_IF_NOT, SECOND, 0, 0, value)]
    };
    // The kernel takes packets to ::1 from the loopback alone, and those to 127.0.0.1 with `route_localnet` from others.
    let mut v4 = [is(LOCAL_V4, LOCALHOST_V4), is(REMOTE_V4, LOCALHOST_V4)].concat();
    v4.push(instruction(STORE, STACK, 0, -4, V4));
    let mut v6: Vec<_> = LOCAL_V6.iter().zip(LOCALHOST_V6).flat_map(|(at, value)| is(*at, value)).collect();
    v6.push(instruction(STORE, STACK, 0, -4, V6));
    let give = [
        instruction(COPY, SECOND, STACK, 0, 0),
        instruction(ADD, SECOND, 0, 0, -4),
        instruction(SET_LONG, FIRST, IS_MAP, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP),
        instruction(JUMP_IF, RESULT, 0, 0, 0),
        instruction(COPY, SOCKET, RESULT, 0, 0),
        instruction(COPY, FIRST, CONTEXT, 0, 0),
        instruction(COPY, SECOND, SOCKET, 0, 0),
        instruction(SET, THIRD, 0, 0, 0),
        instruction(CALL, 0, 0, 0, ASSIGN),
        instruction(COPY, FIRST, SOCKET, 0, 0),
        instruction(CALL, 0, 0, 0, RELEASE),
    ];
    let mut program = vec![instruction(COPY, CONTEXT, FIRST, 0, 0)];
    program.extend(is(PROTOCOL, libc::IPPROTO_TCP));
    let [load, is_v4] = is(FAMILY, libc::AF_INET);
    program.extend([load, Instruction { offset: v4.len() as i16 + 1, ..is_v4 }]);
    program.extend(v4);
    program.push(instruction(JUMP, 0, 0, v6.len() as i16 + 2, 0));
    program.extend(is(FAMILY, libc::AF_INET6));
    program.extend(v6);
    program.extend(give);
    let end = program.len();
    // Whatever has no place to go yet passes.
    for (at, step) in program.iter_mut().enumerate() {
        if matches!(step.code, JUMP_IF | code::JUMP_IF_NOT) && step.offset == 0 {
            step.offset = (end - at - 1) as i16;
        }
    }
    program.extend([instruction(SET, RESULT, 0, 0, PASS), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// The name it has where tools list programs.
const NAME: &[u8; 16] = b"kata_forward\0\0\0\0";
const LICENSE: &CStr = c"Apache-2.0";

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// The fields of `union bpf_attr` that each command reads; the kernel takes the rest for zero.
#[repr(C)]
struct NewMap {
    kind: u32,
    key_size: u32,
    value_size: u32,
    most: u32,
}

#[repr(C)]
struct Update {
    map: RawFd,
    _unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

#[repr(C)]
struct NewLink {
    program: RawFd,
    target: RawFd,
    attach_kind: u32,
    flags: u32,
}

/// Has `v4` and `v6`, which listen in `namespace`, get every connection there to localhost, as long as what is returned
/// lives. A connection's own address is the one that was asked for.
///
/// # Errors
/// What step the kernel refused, and why: it is too old, or does not let us.
pub(super) fn give_localhost_to(
    v4: impl AsFd,
    v6: Option<impl AsFd>,
    namespace: impl AsFd,
) -> Result<OwnedFd, String> {
    let refused = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let new_map = NewMap { kind: BPF_MAP_TYPE_SOCKMAP, key_size: 4, value_size: 4, most: 2 };
    let map = descriptor(BPF_MAP_CREATE, &new_map).map_err(refused("a map of sockets"))?;
    put(&map, V4, v4).map_err(refused("a socket in a map"))?;
    v6.map_or(Ok(()), |v6| put(&map, V6, v6)).map_err(refused("a socket in a map"))?;
    let program = load(&program(map.as_raw_fd())).map_err(refused("a program for the choice of sockets"))?;
    let new_link = NewLink {
        program: program.as_raw_fd(),
        target: namespace.as_fd().as_raw_fd(),
        attach_kind: BPF_SK_LOOKUP,
        flags: 0,
    };
    // The link keeps the program, and that the map.
    descriptor(BPF_LINK_CREATE, &new_link).map_err(refused("its attachment to the network namespace"))
}

fn put(map: &OwnedFd, key: i32, socket: impl AsFd) -> io::Result<()> {
    let value = socket.as_fd().as_raw_fd();
    let update = Update {
        map: map.as_raw_fd(),
        _unused: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &update).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let request = Load {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *NAME,
        interface: 0,
        attach_kind: BPF_SK_LOOKUP,
    };
    descriptor(BPF_PROG_LOAD, &request)
}

/// A command whose answer is a descriptor, which is closed on exec.
fn descriptor<T>(command: libc::c_int, request: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, request)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, request: &T) -> io::Result<libc::c_int> {
    // SAFETY: the request, and what it points to, outlives the call, and its size is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *request, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
