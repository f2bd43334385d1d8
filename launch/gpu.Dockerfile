# An image for hosts with NVIDIA GPUs:
#   docker build --file launch/gpu.Dockerfile --tag IMAGE .
#   docker run --gpus=all --shm-size=8g --volume=RUNS:/runs IMAGE \
#     train --config=configs/segmenter.py:dataset=coco_lvis --workdir=/runs/coco_lvis
# CUDA comes with JAX's own wheels, so the host brings only its driver: from version 525
# on for cuda12, from 580 on for `--build-arg=CUDA=cuda13`.
FROM python:3.12-slim
ARG CUDA=cuda12
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /mlseg
# What changes seldom comes first, so that it is not installed again.
COPY requirements.txt ./
RUN pip install --requirement requirements.txt
COPY . .
RUN pip install --editable ".[${CUDA},gcs]"
ENTRYPOINT ["launch/again.sh", "launch/gpu.sh", "python", "main.py"]
CMD ["--help"]
