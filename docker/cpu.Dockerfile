# The server on CPUs: ONNX Runtime, no torch. In the repository's root:
#   docker build -f docker/cpu.Dockerfile -t dpad .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY plugins plugins
COPY runtime runtime
COPY models models
COPY export export
COPY evaluation evaluation
COPY serving serving
RUN python -m venv /opt/dpad && /opt/dpad/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:3.11.13-slim-bookworm
RUN useradd --create-home --uid 10001 dpad
COPY --from=build /opt/dpad /opt/dpad
ENV PATH=/opt/dpad/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/dpad
EXPOSE 8000
# Ready is another question (/health/ready), which whoever sends requests has to ask: a container is not restarted for it.
HEALTHCHECK --interval=10s --timeout=6s --start-period=15m \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/live', timeout=5)"]
ENTRYPOINT ["dpad", "serve"]
CMD ["/bundle", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/keys"]
