# Sourced by the other scripts, with what to install beside the extra train as argument: gives $PYTHON and puts the
# environment's commands on the PATH. The virtual environment is $VENV if that is set, or .venv in the repository; with
# KEEP_VENV=1 it stays as it is, with whatever versions it has.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_venv=${VENV:-$_root/.venv}
_extras=[train${1:+,$1}]

if [ ! -x "$_venv/bin/python" ]; then
    _python=${PYTHON:-python3}
    "$_python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || {
        echo "Python 3.11 or 3.12 is needed, for which fairseq has packages, $_python is $("$_python" --version 2>&1);" \
            "set PYTHON=/path/to/python3.11" >&2
        return 1 2>/dev/null || exit 1
    }
    echo "Making a virtual environment in $_venv"
    "$_python" -m venv "$_venv"
fi
PYTHON=$_venv/bin/python
PATH=$_venv/bin:$PATH
export PYTHON PATH

# Installed already, from these very files and with these extras?
_stamp=$_venv/.mist_fairseq$_extras
_wanted=$(cat "$_root"/{setup.py,constraints.txt,mist_fairseq/engines/native.cpp} | cksum; echo "$_root")
if [ -z "${KEEP_VENV:-}" ] && [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
    echo "Installing mist_fairseq$_extras and what it needs into $_venv"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$_root/constraints.txt" -e "$_root$_extras"
    echo "$_wanted" > "$_stamp"
fi

# Training on a CPU needs big buffers of ever other sizes. glibc hands them back to the kernel after every use and faults
# them in again at the next; told to keep them, it searches its splinters for ever longer. tcmalloc does neither
# (apt-get install libtcmalloc-minimal4). Without it the four settings keep glibc's buffers in huge pages, which forked
# data-loading workers would copy: use --num-workers 0 along with them. A GPU's memory is neither's.
_tcmalloc=$(PATH=$PATH:/sbin ldconfig -p 2>/dev/null | sed -n 's/.*libtcmalloc_minimal\.so.* => //p' | head -n 1 || true)
if [ -n "$_tcmalloc" ]; then
    export LD_PRELOAD=${LD_PRELOAD:-$_tcmalloc}
else
    export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}
    export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
    export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-536870912}
    export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
fi
