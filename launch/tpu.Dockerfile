# An image for TPU hosts:
#   docker build --file launch/tpu.Dockerfile --tag IMAGE .
#   docker run --privileged --network=host IMAGE \
#     train --config=configs/segmenter.py:dataset=coco_lvis --workdir=gs://BUCKET/runs/name
FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /mlseg
# What changes seldom comes first, so that it is not installed again.
COPY requirements.txt ./
RUN pip install --requirement requirements.txt
COPY . .
RUN pip install --editable ".[tpu,gcs]"
ENTRYPOINT ["launch/again.sh", "launch/tpu.sh", "python", "main.py"]
CMD ["--help"]
