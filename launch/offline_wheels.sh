#!/usr/bin/env bash
# For a machine that has JAX for its accelerator but no network: everything else that
# benchmarks/accelerator.py needs, as one small file. Made where there is a network:
#   launch/offline_wheels.sh offline.tar.xz 3.12 0.12.0.1     (its Python, its JAX)
# and used there, beside a copy of this repository:
#   tar xf offline.tar.xz
#   PYTHONPATH=offline python benchmarks/accelerator.py --minutes=8 --output=DIR
# The wheels are unpacked and packed again as one, which halves them. Left out are JAX
# with NumPy and SciPy, which are there, and what the benchmark does not call: tests,
# fonts and drawing, symbols for debuggers, films and AVIF pictures. The last three need gcc and
# binutils for the same processor; ARCH=aarch64 for another.
set -euo pipefail

out=${1:?the file to write, such as offline.tar.xz}
version=${2:-3.12}
jax=${3:-}
python=${PYTHON:-.venv/bin/python}
arch=${ARCH:-x86_64}
out=$(realpath -m "$out")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The ranges are those of requirements.txt, which says what each is for.
packages='flax optax orbax-checkpoint grain ml-collections etils flatbuffers fsspec clu
  absl-py opencv-python-headless simplejpeg pillow matplotlib safetensors pycocotools tqdm
  jaxtyping tensorboardX tensorstore'
for package in $packages; do
  grep -iE "^${package}[>=<]" requirements.txt | sed 's/ *#.*//' || {
    echo "error: requirements.txt has no line for $package" >&2
    exit 1
  }
done > "$work/wanted"
echo "jax${jax:+==$jax}" > "$work/constraints"

platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
  platforms+=(--platform "${tag}_$arch")
done
"$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
  --python-version "$version" "${platforms[@]}" --dest "$work/wheels" \
  --constraint "$work/constraints" --requirement "$work/wanted"
rm -f "$work"/wheels/{jax,jaxlib,numpy,scipy,ml_dtypes,opt_einsum}-*.whl
rm -f "$work"/wheels/{fonttools,contourpy,uvloop}-*.whl

for wheel in "$work"/wheels/*.whl; do
  "$python" -m zipfile -e "$wheel" "$work/offline"
done
cd "$work/offline"
rm -rf cv2/data mpl_toolkits pillow.libs/libavif-* PIL/_avif.* \
  matplotlib/backends/web_backend matplotlib/mpl-data/{images,sample_data} \
  matplotlib/mpl-data/{plot_directive,fonts/afm,fonts/pdfcorefonts}
find matplotlib/mpl-data/fonts/ttf -name '*.ttf' ! -name 'DejaVuSans*' -delete
find . -type d \( -name tests -o -name testing -o -name baseline_images \) \
  -path './matplotlib/*' -prune -exec rm -rf {} +

if [ "$arch" = "$(uname -m)" ] && type gcc objdump strip >/dev/null 2>&1; then
  # OpenCV wants FFmpeg when it is loaded and calls it for films alone, and AOM for AVIF
  # pictures: in their place stand libraries with the same functions, which end the
  # program if they are called.
  objdump -T cv2/cv2.abi3.so opencv_python_headless.libs/libavif-* |
    grep -F '*UND*' >"$work/functions"
  for name in avcodec avformat avutil swscale aom; do
    library=$(echo opencv_python_headless.libs/lib$name-*)
    if [ ! -e "$library" ]; then continue; fi
    symbols=$(grep -oE "LIB${name^^}_[0-9]+" "$work/functions" | head -1 || true)
    grep -E "${symbols:- ${name}_}" "$work/functions" | awk '{print $NF}' |
      sed 's/.*/void &(void) { __builtin_trap(); }/' >"$work/hollow.c"
    echo "${symbols:-HOLLOW} { *; };" >"$work/versions"
    gcc -shared -nostdlib -Os -Wl,-soname,"$(basename "$library")" \
      -Wl,--version-script,"$work/versions" -o "$library" "$work/hollow.c"
  done
  rm -f opencv_python_headless.libs/lib{vpx,swresample,crypto,ssl,drm}-*
  # Those that were not changed after they were linked bear it.
  find . -name '*.so' ! -path './cv2/*' ! -path './PIL/*' ! -path './*.libs/*' \
    -exec strip {} +
fi
cd "$work"
tar -cf - offline | xz --x86 --lzma2=preset=9 --threads=1 > "$out"
bytes=$(stat -c %s "$out")
echo "$out: $((bytes / 1000000)) MB, for Python $version on $arch"
if [ "$bytes" -gt 60000000 ]; then
  echo "warning: more than 60 MB" >&2
fi
