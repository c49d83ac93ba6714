# Shared by the set-up scripts: where things are kept, how steps are announced. Sourced, not run.
# shellcheck shell=bash

CACHE=${KATA_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/containerd-shim-kata-v2}
mkdir -p "$CACHE"

# Everything that changes the machine needs root; without it, by way of sudo.
as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -- "$@"; fi
}

say() {
    printf '==> %s\n' "$*"
}

# `step "what" command...` says what begins and how long it took.
step() {
    local what=$1 began=${EPOCHREALTIME/./}
    shift
    say "$what"
    "$@"
    local took=$(((${EPOCHREALTIME/./} - began) / 1000))
    printf '    %s: %d.%03d s\n' "$what" $((took / 1000)) $((took % 1000))
}

# `cargo_tool binary version [package]` builds a published program into $CACHE/bin, unless that version is there.
cargo_tool() {
    local binary=$1 version=$2 package=${3:-$1} stamp
    stamp=$CACHE/bin/.$binary-$version
    [[ -x $CACHE/bin/$binary && -e $stamp ]] && return
    # Programs of one script share dependencies; the build directory makes an interrupted build cheap to resume.
    step "build $package $version" env CARGO_TARGET_DIR="$CACHE/build/tools" \
        cargo install --quiet --locked --force --root "$CACHE" "$package@$version"
    touch "$stamp"
}
