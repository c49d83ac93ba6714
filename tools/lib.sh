# Shared by the set-up scripts: where things are kept, how steps are announced. Sourced, not run.
# shellcheck shell=bash

CACHE=${KATA_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/containerd-shim-kata-v2}
mkdir -p "$CACHE"

# The guest that is used: the trimmed kernel of `make guest-kernel` with its initramfs where it is built, else the
# distribution's; KATA_GUEST=stock or KATA_GUEST=trimmed says which.
guest_dir() {
    local trimmed=$CACHE/guest/trimmed
    case ${KATA_GUEST:-} in
        stock) echo "$CACHE/guest" ;;
        trimmed) echo "$trimmed" ;;
        '') if [[ -e $trimmed/initrd.img ]]; then echo "$trimmed"; else echo "$CACHE/guest"; fi ;;
        *) echo "KATA_GUEST=$KATA_GUEST: stock or trimmed" >&2 && return 1 ;;
    esac
}

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

# `cargo_tool binary version package` builds a published program into $CACHE/bin, unless that version is there.
# Without link-time optimisation, which doubles the time and would gain nothing that is seen here.
cargo_tool() {
    local binary=$1 version=$2 package=$3
    local stamp=$CACHE/bin/.$binary-$version
    [[ -x $CACHE/bin/$binary && -e $stamp ]] && return
    # Outside the repository, whose settings are not meant for it. An interrupted build goes on where it was.
    (cd "$CACHE" && step "build $package $version" \
        env CARGO_TARGET_DIR="$CACHE/build/tools" CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=false cargo install --quiet --locked --force --root "$CACHE" "$package@$version")
    touch "$stamp"
}
