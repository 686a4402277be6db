# The service, for any platform that runs containers; compose.yaml has it with everything around it.
# Python is of the version that the tests run on. The digest is the tag's of September 2026; a newer one:
#   docker buildx imagetools inspect python:3.11-slim-bookworm
ARG PYTHON=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${PYTHON} AS packages
COPY requirements.txt /
# Nothing is compiled: all of it comes as wheels. pip stays outside of what is copied below.
RUN python -m venv --without-pip /venv && \
    python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes --requirement /requirements.txt

FROM ${PYTHON}
# The folder of the ledger: mount a volume here. (No VOLUME instruction: Railway refuses such images.)
RUN groupadd --gid 10001 replicator && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin replicator && \
    install --directory --owner 10001 --group 10001 --mode 0700 /data
WORKDIR /app
COPY --from=packages /venv /venv
COPY LICENSE ./
COPY webhook ./webhook
COPY config ./config
COPY scripts ./scripts
# Compiled now: at run time the file system may be read-only.
RUN /venv/bin/python -m compileall -q webhook config scripts

ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/replicator.db
# A number, so that a platform can see that it is not root. It writes to /data, and to /tmp.
USER 10001:10001
EXPOSE 8000
# SIGTERM: no more is taken, running copies get DRAIN_S (25 s), what is left is handed back. Give it 45 s before
# SIGKILL: docker stop --time 45, stop_grace_period, drainingSeconds, terminationGracePeriodSeconds.
STOPSIGNAL SIGTERM
# Whether the process answers: a store or database that is away is not mended by a restart (that is /readyz).
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-c", "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/healthz', timeout=4)"]
CMD ["gunicorn", "--config", "config/gunicorn.conf.py", "webhook:create_app()"]
