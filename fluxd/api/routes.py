"""The route table: every way to ask fluxd something, and which method of `handlers.Api` answers."""

from __future__ import annotations

from typing import Any, Final

from fluxd import wire
from fluxd.api.openapi import Query, Route
from fluxd.core import errors

_PLANE_PROBLEMS: Final = (errors.NotAuthenticated, errors.ProjectNotFound, errors.RateLimited, errors.PlaneUnreachable)
_LOOKUP_PROBLEMS: Final = (errors.TunnelNotFound, errors.TunnelAmbiguous)

ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/v1/status", "status", "The daemon, its SSH hosts and counts", {200: wire.Status}),
    Route("GET", "/v1/tunnels", "list_tunnels", "Every tunnel", {200: wire.TunnelList}),
    Route(
        "POST",
        "/v1/tunnels",
        "open_tunnel",
        "Open a tunnel, or find it open; with a grant of its own if asked",
        {200: wire.TunnelOpened, 201: wire.TunnelOpened},
        body=wire.OpenTunnel,
        problems=(*_PLANE_PROBLEMS, errors.TunnelOpenDifferently, errors.PortTaken, errors.SSHUnreachable),
    ),
    Route(
        "GET",
        "/v1/tunnels/{name}",
        "show_tunnel",
        "One tunnel",
        {200: wire.TunnelAnswer},
        problems=_LOOKUP_PROBLEMS,
    ),
    Route(
        "DELETE",
        "/v1/tunnels/{name}",
        "close_tunnel",
        "Close a tunnel and revoke its grants",
        {200: wire.TunnelClosed},
        problems=_LOOKUP_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/tunnels/{name}/renew",
        "renew_tunnel",
        "Extend its live grants, each up to 8 h after its mint",
        {200: wire.TunnelAnswer},
        body=wire.RenewTunnel,
        problems=(*_LOOKUP_PROBLEMS, errors.RenewLimit, errors.LeaseOver, errors.NotSupportedByPlane),
    ),
    Route(
        "DELETE",
        "/v1/ports/{name}",
        "forget_port",
        "Forget the local port that was kept for a project",
        {204: None},
        problems=_LOOKUP_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/events",
        "events",
        "What happens, one JSON object a line; first a snapshot, later a ping now and then",
        {200: wire.Event},
        query=(
            Query("tunnel", str, "only this tunnel's: id, slug, hash or port"),
            Query("hold", str, "keep this hold while the stream lasts"),
        ),
        media="application/x-ndjson",
        problems=(*_LOOKUP_PROBLEMS, errors.HoldUnknown),
    ),
    Route(
        "GET",
        "/v1/plans/{hash}",
        "plan",
        "What a grant would be, without one",
        {200: wire.PlanAnswer},
        query=(Query("local_port", wire.PortNumber, "only echoed in the plan"),),
        takes_plane=True,
        takes_ssh=True,
        problems=_PLANE_PROBLEMS,
    ),
    Route(
        "POST",
        "/v1/grants/{hash}",
        "mint_grant",
        "A temporary role without a tunnel",
        {200: wire.GrantMinted},
        body=wire.MintGrant,
        problems=(*_PLANE_PROBLEMS, errors.ReadwriteDisabled, errors.WrongMode, errors.GrantFailed),
    ),
    Route(
        "GET",
        "/v1/projects",
        "projects",
        "The account's projects",
        {200: wire.ProjectList},
        takes_plane=True,
        problems=_PLANE_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/projects/{hash}",
        "project",
        "One project",
        {200: wire.Project},
        takes_plane=True,
        problems=_PLANE_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/projects/{hash}/credentials",
        "credentials",
        "Its long-lived secrets: for v1 the Postgres password",
        {200: wire.Credentials},
        takes_plane=True,
        problems=_PLANE_PROBLEMS,
    ),
    Route(
        "GET",
        "/v1/projects/{hash}/activity",
        "activity",
        "What happened to it, newest first",
        {200: wire.Activity},
        query=(Query("limit", wire.ActivityLimit, "at most so many events"),),
        takes_plane=True,
        problems=_PLANE_PROBLEMS,
    ),
    Route(
        "PUT",
        "/v1/login",
        "login",
        "Check a token and keep it in the system keyring",
        {200: wire.LoginAnswer},
        body=wire.Login,
        problems=(errors.NotAuthenticated, errors.KeyringUnavailable, errors.PlaneUnreachable),
    ),
    Route(
        "DELETE",
        "/v1/login",
        "logout",
        "Close what was opened with the token, and forget it",
        {200: wire.LoginAnswer},
        takes_plane=True,
        problems=(errors.KeyringUnavailable,),
    ),
    Route(
        "GET",
        "/v1/doctor",
        "doctor",
        "Test each step of the way",
        {200: wire.Doctor},
        query=(Query("project", wire.HashText, "the way to this project's database too"),),
        takes_plane=True,
        takes_ssh=True,
    ),
    Route("GET", "/healthz", "health", "Alive, and able to open a tunnel?", {200: wire.Health}),
    Route("GET", "/openapi.json", "contract", "This document", {200: dict[str, Any]}),
)
