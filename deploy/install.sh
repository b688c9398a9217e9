#!/bin/sh
# Installs the gateway of this checkout as a systemd service, or updates it: run it again.
# docs/deploy/systemd.md tells more.
set -eu

usage() {
    cat <<'END'
Usage: deploy/install.sh [--nginx] [--python PROGRAM] [--root DIR]

  --nginx           also put deploy/nginx.conf in the place of nginx's own configuration
  --python PROGRAM  the Python (3.11 or newer) to run with, instead of the one that is found
  --root DIR        try it: lay everything below DIR; make no user and start nothing
END
}

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

root='' python='' nginx=no
while [ $# -gt 0 ]; do
    case $1 in
        --nginx) nginx=yes ;;
        --python | --root)
            [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value"
            case $1 in
                --python) python=$2 ;;
                *) root=$2 ;;
            esac
            shift
            ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && fail "what is $1?" ;;
    esac
    shift
done

source=$(cd "$(dirname "$0")/.." && pwd)
if [ -n "$root" ]; then
    mkdir -p "$root"
    root=$(cd "$root" && pwd)
elif [ "$(id -u)" -ne 0 ]; then
    fail "run it as root, or with --root DIR to try it"
fi
[ -n "$python" ] || python=$(command -v python3.11 || command -v python3) || fail "there is no Python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is older than Python 3.11; name another with --python"

user=tts-service
app=$root/opt/tts-service
prompts=$root/var/lib/tts-service/prompts
unit=$root/etc/systemd/system/tts-service.service
nginx_conf=$root/etc/nginx/nginx.conf

# A new one for each set of packages, or Python: the service goes on with the old one until it is
# complete, and if it cannot be completed.
lay_venv() {
    version=$("$python" -VV | cat - "$source/requirements.txt" | cksum | cut -d ' ' -f 1)
    venv=$app/.venv-$version
    if [ ! -e "$venv/complete" ]; then
        echo "Installing what it needs into $venv ..."
        mkdir -p "$app"
        "$python" -m venv --clear "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --requirement "$source/requirements.txt"
        touch "$venv/complete"
    fi
    ln -sfn ".venv-$version" "$app/.venv"
}

lay_program() {
    rm -rf "$app/tts_service"
    cp -R "$source/tts_service" "$app/"
    find "$app/tts_service" -name __pycache__ -prune -exec rm -rf {} +
    for each in config.py wsgi.py gunicorn.conf.py requirements.txt README.md LICENSE .env.example; do
        cp "$source/$each" "$app/"
    done
    chmod -R u=rwX,go=rX "$app/tts_service"
    "$app/.venv/bin/python" -m compileall -q "$app/tts_service" "$app"/*.py
}

remove_old_venvs() {
    for each in "$app"/.venv-*; do
        [ "$each" = "$venv" ] || rm -rf "$each"
    done
}

# The operator's from here on: an update leaves both alone.
lay_settings_and_recordings() {
    if [ ! -d "$prompts" ]; then
        mkdir -p "$prompts"
        cp "$source"/prompts/*.wav "$prompts/"
    fi
    [ -e "$app/.env" ] || (
        umask 077
        {
            echo "# Where they are; the other settings, with their defaults, follow."
            echo "PROMPTS_DIR=$prompts"
            echo "DEFAULT_PROMPT_AUDIO_PATH=$prompts/default.wav"
            echo
            grep -v -e '^#PROMPTS_DIR=' -e '^#DEFAULT_PROMPT_AUDIO_PATH=' "$source/.env.example"
        } >"$app/.env"
    )
}

lay_unit() {
    mkdir -p "$(dirname "$unit")"
    cp "$source/deploy/tts-service.service" "$unit"
    chmod 644 "$unit"
}

# Only once, for its owner adapts it; what was there before stays beside it.
lay_nginx() {
    if grep -q 'upstream gateways' "$nginx_conf" 2>/dev/null; then
        echo "$nginx_conf is left as it is."
        return
    fi
    mkdir -p "$(dirname "$nginx_conf")" "$root/var/cache/nginx" "$root/var/log/nginx"
    [ ! -e "$nginx_conf" ] || mv "$nginx_conf" "$nginx_conf.before-tts-service"
    cp "$source/deploy/nginx.conf" "$nginx_conf"
    # Its user has this name on Debian and Ubuntu, and is called like the program elsewhere.
    getent passwd www-data >/dev/null || sed -i 's/^user .*/user nginx;/' "$nginx_conf"
    chmod 644 "$nginx_conf"
}

own() {
    getent passwd "$user" >/dev/null ||
        useradd --system --user-group --home-dir /var/lib/tts-service --no-create-home \
            --shell /usr/sbin/nologin "$user"
    chown -R "$user:$user" /var/lib/tts-service
    chown "root:$user" "$app/.env"
    chmod 640 "$app/.env"
}

lay_venv
lay_program
lay_settings_and_recordings
lay_unit
[ "$nginx" = no ] || lay_nginx

if [ -n "$root" ]; then
    remove_old_venvs
    echo "Everything lies below $root; nothing was started."
    exit 0
fi

own
systemctl daemon-reload
systemctl enable --quiet tts-service
systemctl restart tts-service
remove_old_venvs
if [ "$nginx" = yes ]; then
    nginx -t -q
    systemctl enable --quiet nginx
    systemctl reload-or-restart nginx
fi
echo "Running. Settings: $app/.env, then: systemctl restart tts-service"
echo "Recordings: $prompts. Log: journalctl -u tts-service"
