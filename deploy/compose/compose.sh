# Read by the scripts beside it.

export COMPOSE_PROJECT_NAME=postern
export POSTERN_TAG=${POSTERN_TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' ../../Cargo.toml | head -1)}
# The first three bytes of the demo's network; another one where this is taken.
export POSTERN_PREFIX=${POSTERN_PREFIX:-172.28.7}

command -v docker >/dev/null || {
    echo "the Docker Engine is needed: sudo apt-get install docker.io docker-compose" >&2
    exit 2
}

# Version 2 of Compose is a part of docker, version 1 a program of its own.
compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose "$@"
    elif command -v docker-compose >/dev/null; then
        docker-compose "$@"
    else
        echo "Compose is needed: sudo apt-get install docker-compose" >&2
        exit 2
    fi
}

# Waits until a container is healthy, and says why where it is not.
healthy() {
    local deadline=$((SECONDS + 60)) state
    while :; do
        state=$(docker inspect -f '{{.State.Health.Status}}' "$1" 2>/dev/null || echo missing)
        [ "$state" = healthy ] && return
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "$1 is $state after 60 seconds; its last words:" >&2
            docker logs --tail 20 "$1" >&2 || true
            exit 1
        fi
        sleep 0.2
    done
}
