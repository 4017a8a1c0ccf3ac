#!/bin/sh
# Installs tidegate where there is no package for it: into an environment of its own, from one
# file whose SHA-256 is checked before anything of it runs. It needs Python 3.11 or newer with venv.
#
#   install.sh [OPTION...] FILE-OR-URL    a wheel or a source archive of tidegate
#   install.sh --uninstall                removes exactly what was installed, no more
#
# What it makes:
#   as root /opt/tidegate, else ~/.local/share/tidegate: an environment for each version, of which
#     `current` is a link to one; the former one stays, for something may still run on it
#   as root /usr/local/bin/tidegate, else ~/.local/bin/tidegate: a link to the command in it
# Config, tokens and logs are tidegate's own affair: they are neither made nor removed here.
set -eu
umask 022 # what root installs is for everybody to run, whatever root's own umask

usage() {
    cat <<'END'
usage: install.sh [OPTION...] FILE-OR-URL
       install.sh --uninstall [OPTION...]

FILE-OR-URL       a wheel (.whl) or source archive (.tar.gz) of tidegate
--sha256 HEX      what its SHA-256 must be; without it, the file SHA256SUMS beside it says so
--lock FILE       install its dependencies in these versions (requirements.lock)
--prefix DIR      for the environments, instead of ~/.local/share/tidegate or /opt/tidegate
--bin DIR         where the command is linked, instead of ~/.local/bin or /usr/local/bin
--python PYTHON   the Python to use, instead of the newest that is found
--service         make it a service as well: tidegate service install
--no-service      do not, and do not ask
--dry-run         say what would be done, and do nothing
--uninstall       remove the environments and the link
--help            this text
END
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# --- what is wanted --------------------------------------------------------------------------------

if [ "$(id -u)" = 0 ]; then
    prefix=/opt/tidegate
    bin=/usr/local/bin
else
    prefix=${HOME:?is not set}/.local/share/tidegate
    bin=$HOME/.local/bin
fi
source=''
sha256=''
lock=''
python=''
service=ask
dry=''
verb=install

needs_value() { [ "$2" -ge 2 ] || fail "$1 needs a value; see --help"; }

while [ $# -gt 0 ]; do
    case $1 in
        --sha256) needs_value "$1" $#; sha256=$2; shift ;;
        --lock) needs_value "$1" $#; lock=$2; shift ;;
        --prefix) needs_value "$1" $#; prefix=$2; shift ;;
        --bin) needs_value "$1" $#; bin=$2; shift ;;
        --python) needs_value "$1" $#; python=$2; shift ;;
        --service) service=yes ;;
        --no-service) service=no ;;
        --dry-run) dry=yes ;;
        --uninstall) verb=uninstall ;;
        --help | -h) usage; exit 0 ;;
        -*) usage >&2; exit 64 ;;
        *) [ -z "$source" ] || { usage >&2; exit 64; }; source=$1 ;;
    esac
    shift
done
for directory in "$prefix" "$bin"; do
    case $directory in
        /*) ;;
        *) fail "$directory: name it from the root of the file system" ;;
    esac
done

mark=$prefix/.installed-by-install.sh # what may be removed again is marked as ours
link=$bin/tidegate
command=$prefix/current/bin/tidegate

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP

# Says what it does; with --dry-run no more than that.
do_() {
    say "  $*"
    [ -n "$dry" ] || "$@"
}

# The words that every process was started with. A small Linux may lack a ps that knows these
# options, or any; it has /proc.
processes() {
    if [ -r /proc/self/cmdline ]; then
        cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'
    else
        ps -A -ww -o args=
    fi
}

# Whether some process was started from there: its interpreter is named on its command line.
is_in_use() {
    processes >"$scratch/processes" || fail "cannot see what runs; is there a ps?"
    grep -qF "$1/" "$scratch/processes"
}

is_ours() { [ -L "$link" ] && [ "$(readlink "$link")" = "$command" ]; }

# --- removing --------------------------------------------------------------------------------------

if [ "$verb" = uninstall ]; then
    [ -z "$source" ] || { usage >&2; exit 64; }
    [ -e "$mark" ] || fail "$prefix: nothing there that this script installed"
    if [ -z "$dry" ] && is_in_use "$prefix/versions"; then
        fail "tidegate is running. First: tidegate stop, or tidegate service uninstall"
    fi
    for unit in /etc/systemd/system/tidegate.service \
        "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user/tidegate.service" \
        /Library/LaunchDaemons/dev.tidegate.tidegate.plist \
        "$HOME/Library/LaunchAgents/dev.tidegate.tidegate.plist"; do
        if grep -qsF -e "$link" -e "$prefix/" "$unit"; then
            fail "$unit starts it. First: tidegate service uninstall"
        fi
    done
    say "Removing tidegate:"
    if is_ours; then do_ rm -f "$link"; fi
    do_ rm -rf "$prefix"
    say "Config, tokens and logs are as they were; tidegate's documents say where they are."
    exit 0
fi

# --- checking --------------------------------------------------------------------------------------

[ -n "$source" ] || { usage >&2; exit 64; }
name=${source##*/}
case $name in
    tidegate-*.whl | tidegate-*.tar.gz) ;;
    *) fail "$name: not a wheel or a source archive of tidegate" ;;
esac
if [ -e "$prefix" ] && [ ! -e "$mark" ]; then
    # An empty directory may have been made for us.
    if [ ! -d "$prefix" ] || [ -n "$(ls -A "$prefix")" ]; then
        fail "$prefix: exists, and is not ours"
    fi
fi
if { [ -e "$link" ] || [ -L "$link" ]; } && ! is_ours; then
    fail "$link: exists, and is not ours; choose another place with --bin"
fi
[ -z "$lock" ] || [ -r "$lock" ] || fail "$lock: cannot be read"

is_good() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [ -n "$python" ]; then
    is_good "$python" || fail "$python: not Python 3.11 or newer with venv"
else
    for candidate in python3.13 python3.12 python3.11 python3; do
        if is_good "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "needs Python 3.11 or newer with venv. Debian, Ubuntu:" \
        "sudo apt install python3 python3-venv; macOS: brew install python@3.13"
fi

download() {
    if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --proto '=https,file' --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --quiet --https-only --output-document="$2" "$1"
    else
        fail "needs curl or wget to fetch $1"
    fi
}

digest() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d ' ' -f 1
    else
        shasum -a 256 "$1" | cut -d ' ' -f 1
    fi
}

# The checksums may have come the same way as the file: they guard against a broken or exchanged
# download, and --sha256 from elsewhere guards against more.
case $source in
    https://* | file://*)
        say "Fetching $source"
        download "$source" "$scratch/$name"
        [ -n "$sha256" ] || download "${source%/*}/SHA256SUMS" "$scratch/SHA256SUMS" ||
            fail "no SHA256SUMS beside it; give --sha256"
        ;;
    http://*) fail "$source: only over https" ;;
    *)
        [ -r "$source" ] || fail "$source: cannot be read"
        # A copy, so that what is installed is what was checked.
        cp "$source" "$scratch/$name"
        case $source in
            */*) beside=${source%/*} ;;
            *) beside=. ;;
        esac
        if [ -z "$sha256" ]; then
            [ -r "$beside/SHA256SUMS" ] || fail "no SHA256SUMS beside it; give --sha256"
            cp "$beside/SHA256SUMS" "$scratch/SHA256SUMS"
        fi
        ;;
esac
if [ -z "$sha256" ]; then
    sha256=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1; exit }' \
        "$scratch/SHA256SUMS")
    [ -n "$sha256" ] || fail "SHA256SUMS does not have $name"
fi
sha256=$(printf %s "$sha256" | tr 'A-F' 'a-f')
found=$(digest "$scratch/$name")
[ "$found" = "$sha256" ] || fail "$name: its SHA-256 is $found, not $sha256. Nothing was installed."
say "Checked: the SHA-256 of $name is $found"

# --- installing ------------------------------------------------------------------------------------

# An environment lies where it was made for ever, so each file has its own. What runs keeps the
# one that it was started from, whole, until it has taken up the new one.
version=$(printf %s "$found" | cut -c 1-12)
environment=$prefix/versions/$version
complete=$environment/.complete
former=$(readlink "$prefix/current" 2>/dev/null || true)

point_to() { # LINK TARGET: at no moment there is none
    do_ ln -sfn "$2" "$1.new"
    if [ -z "$dry" ]; then
        "$python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$1.new" "$1"
    fi
}

pip_install() {
    do_ "$environment/bin/python" -m pip --disable-pip-version-check --quiet install "$@"
}

make_environment() {
    do_ rm -rf "$environment"
    do_ "$python" -m venv "$environment"
    if [ -n "$lock" ]; then
        pip_install -r "$lock"
        pip_install --no-deps "$scratch/$name"
    else
        pip_install "$scratch/$name"
    fi
    do_ "$environment/bin/tidegate" --version
    do_ touch "$complete"
}

say "Installing into $prefix, with $("$python" --version):"
do_ mkdir -p "$prefix/versions" "$bin"
do_ touch "$mark"
if [ -e "$complete" ]; then
    say "  $environment is there already"
else
    make_environment # a failure ends it here, and what is in use stays as it was
fi
if [ "$former" != "versions/$version" ]; then point_to "$prefix/current" "versions/$version"; fi
is_ours || point_to "$link" "$command"
[ -z "$dry" ] || { say "Nothing was done."; exit 0; }

say "Installed: $("$link" --version), as $link"
case :$PATH: in
    *:"$bin":*) ;;
    *) say "$bin is not in your PATH; add it, or call $link" ;;
esac

# --- what runs, and what shall ---------------------------------------------------------------------

remove_unused() {
    for old in "$prefix"/versions/*; do
        case $old in "$environment" | "$prefix/$former") continue ;; esac
        # What refused a version before may still run on an older one.
        is_in_use "$old" || do_ rm -rf "$old"
    done
}

if "$link" status >/dev/null 2>&1; then
    if [ "$former" != "versions/$version" ]; then
        say "The running tidegate takes up this version; no stream is cut."
        "$link" upgrade --no-wait || say "It goes on with the former one. Why is said above."
    fi
    remove_unused
    exit 0
fi
remove_unused
if [ "$service" = ask ]; then
    service=no
    if [ -t 0 ] && [ -t 1 ]; then
        printf 'Make it a service that starts with the computer? [y/N] '
        read -r answer || answer=n
        case $answer in [yY]*) service=yes ;; esac
    fi
fi
if [ "$service" = yes ]; then
    "$link" service install
    exit 0
fi
say "To try it: tidegate run. To keep it running: tidegate service install."
