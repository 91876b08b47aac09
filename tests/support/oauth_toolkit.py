"""django-oauth-toolkit on a loopback port: a program for `authorization_servers`.

``python -m tests.support.oauth_toolkit DATABASE PORT GRACE TOKEN_SECONDS CLIENTS``. Its ``/-/…`` is
how the tests' helper reaches behind it.
"""

from __future__ import annotations

import importlib
import json
import secrets
import sys
import threading
from datetime import timedelta
from typing import Any

database, port, grace, token_seconds, clients = sys.argv[1:]


def untyped(name: str) -> Any:
    return importlib.import_module(name)


settings: Any = untyped("django.conf").settings
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    OAUTH2_PROVIDER={
        "ACCESS_TOKEN_EXPIRE_SECONDS": int(token_seconds),
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": int(grace),
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "ROTATE_REFRESH_TOKEN": True,
        "SCOPES": {"read": "Reading", "write": "Writing"},
    },
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),
    USE_TZ=True,
)
untyped("django").setup()
http: Any = untyped("django.http")
now: Any = untyped("django.utils.timezone").now
models: Any = untyped("oauth2_provider.models")
path: Any = untyped("django.urls").path
include: Any = untyped("django.urls").include
exempt: Any = untyped("django.views.decorators.csrf").csrf_exempt
atomic: Any = untyped("django.db.transaction").atomic

exchanges = 0


def answered(request: Any, **_: object) -> None:
    global exchanges
    exchanges += request.POST.get("grant_type") == "refresh_token"


untyped("oauth2_provider.signals").app_authorized.connect(answered, weak=False)


def behind(request: Any, what: str) -> Any:
    answer = {"exchanges": count, "grant": grant, "expire": expire, "end": end}[what](request.GET)
    return http.JsonResponse(answer, safe=False)


def count(_: Any) -> int:
    return exchanges


def grant(asked: Any) -> str:
    application = models.Application.objects.get(client_id=asked["client_id"])
    owned = {"user_id": 1, "application": application}
    expires = now() + timedelta(seconds=int(token_seconds))
    token = secrets.token_urlsafe()
    access = models.AccessToken.objects.create(
        token=secrets.token_urlsafe(), scope="read write", expires=expires, **owned
    )
    family = untyped("uuid").uuid4()
    models.RefreshToken.objects.create(
        token=token, access_token=access, token_family=family, **owned
    )
    return token


def expire(asked: Any) -> None:
    # To revoke it would be the end of the refresh token that came with it.
    models.AccessToken.objects.filter(token=asked["token"]).update(expires=now())


def end(asked: Any) -> None:
    models.RefreshToken.revoke_family(
        models.RefreshToken.objects.filter(token=asked["token"]).last().token_family
    )


urlpatterns = [
    path("-/<what>", exempt(behind)),
    path("", include("oauth2_provider.urls", namespace="oauth2_provider")),
]


def main() -> None:
    untyped("django.core.management").call_command("migrate", verbosity=0)
    untyped("django.contrib.auth.models").User.objects.create_user("somebody")
    for client in json.loads(clients):
        models.Application.objects.create(
            authorization_grant_type="client-credentials",
            client_type="confidential" if client.get("client_secret") else "public",
            hash_client_secret=False,
            client_id=client["client_id"],
            client_secret=client.get("client_secret", ""),
        )
    basehttp: Any = untyped("django.core.servers.basehttp")
    application: Any = untyped("django.core.wsgi").get_wsgi_application()
    one_at_a_time = threading.Lock()  # SQLite writes for one

    def serve(environ: Any, start_response: Any) -> Any:
        with one_at_a_time:
            return application(environ, start_response)

    basehttp.ThreadedWSGIServer.request_queue_size = 1_000  # of ten it resets what comes at once
    server = basehttp.ThreadedWSGIServer(("127.0.0.1", int(port)), basehttp.WSGIRequestHandler)
    server.daemon_threads = True
    server.set_app(serve)
    server.serve_forever()


if __name__ == "__main__":
    main()
