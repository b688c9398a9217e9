"""Real servers for the tests: Gradio apps that imitate IndexTTS, Redis, nginx, and the service.

`GradioApp`, `RedisServer`, `NginxServer` and `Gateway` run in processes of their own and are what
tests use; the other modules are what runs inside a Gradio app's process.
"""

from servers.gateway import Gateway
from servers.gradio_process import GradioApp
from servers.machine import free_port, require_program, start_all, wait_until
from servers.nginx_process import NginxServer
from servers.redis_process import RedisServer

__all__ = [
    "Gateway",
    "GradioApp",
    "NginxServer",
    "RedisServer",
    "free_port",
    "require_program",
    "start_all",
    "wait_until",
]
