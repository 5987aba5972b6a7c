# Two images from one file:
#   docker build --target service  -t reluguard:0.1.0 .
#   docker build --target training -t reluguard-training:0.1.0 .
# tests/service/test_deploy.py replays the steps of `service` in a clean environment.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY reluguard ./reluguard
COPY commands ./commands
COPY detector ./detector
COPY service ./service
COPY training ./training
RUN python -m venv /opt/reluguard
RUN /opt/reluguard/bin/pip install --no-cache-dir .

FROM build AS build-training
RUN /opt/reluguard/bin/pip install --no-cache-dir '.[training]'

# What runs in production: no torch, no compiler, no source tree, nobody's home directory.
FROM python:3.11-slim AS service
COPY --from=build /opt/reluguard /opt/reluguard
# PYTHONSAFEPATH: no file in the working folder is imported in place of a library
ENV PATH=/opt/reluguard/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RELUGUARD_HOST=0.0.0.0
USER 10001:10001
EXPOSE 50051 9464
# plain text by default; with TLS give the arguments of `reluguard health` in your orchestrator's probe
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["reluguard", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["reluguard"]
CMD ["serve"]

FROM python:3.11-slim AS training
COPY --from=build-training /opt/reluguard /opt/reluguard
ENV PATH=/opt/reluguard/bin:$PATH \
    PYTHONSAFEPATH=1
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["reluguard"]
