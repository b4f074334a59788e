#!/bin/sh
# Puts ONNX Runtime into third_party/: the headers from Debian's package libonnxruntime-dev (trixie; nothing is installed),
# the library from the wheel onnxruntime of PyPI. Elsewhere than on Debian or Ubuntu unpack a release of ONNX Runtime there:
# third_party/include and third_party/lib. A newer library runs programs that were built with older headers.
set -eu
cd "$(dirname "$0")"
python="${PYTHON:-python3}"
suite="${DEBIAN_SUITE:-trixie}"
# The mirror that this system uses itself.
mirror="${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' | head -n 1)}"
[ -e third_party/.complete ] && exit 0
rm -rf third_party
mkdir -p third_party/include third_party/lib third_party/apt/lists/partial third_party/apt/cache/archives/partial
trap 'rm -rf third_party/apt third_party/wheel third_party/deb' EXIT

# apt-get with a state of its own, so that the system's sources and lists stay as they are.
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" > third_party/apt/sources.list
here="$(pwd)/third_party/apt"
apt() {
    apt-get -qq -o Dir::Etc::SourceList="$here/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$here/lists" -o Dir::Cache="$here/cache" -o APT::Sandbox::User=root "$@"
}
apt update
(cd third_party/apt && apt download libonnxruntime-dev)
dpkg-deb -x third_party/apt/libonnxruntime-dev_*.deb third_party/deb
cp third_party/deb/usr/include/onnxruntime/onnxruntime_*.h third_party/include/

# The library: of an installed wheel, or of one that is downloaded.
installed="$("$python" -c 'import importlib.util as u; print(u.find_spec("onnxruntime").submodule_search_locations[0])' 2>/dev/null || true)"
if [ -z "$installed" ]; then
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --dest third_party/wheel onnxruntime
    "$python" -m zipfile -e third_party/wheel/onnxruntime-*.whl third_party/wheel
    installed=third_party/wheel/onnxruntime
fi
cp "$installed"/capi/libonnxruntime.so.* third_party/lib/
library="$(cd third_party/lib && ls libonnxruntime.so.* | head -1)"
ln -sf "$library" third_party/lib/libonnxruntime.so
ln -sf "$library" third_party/lib/libonnxruntime.so.1
touch third_party/.complete
