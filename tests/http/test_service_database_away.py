"""A PostgreSQL that goes away while it is in use, and comes back."""

import asyncio

from sqlalchemy.engine import make_url

from aggregator import logs
from tests.kits.log_lines import lines, of
from tests.kits.service import QUIET_S, devices, finished, run, served, spec


async def test_a_database_that_is_away_is_told_with_its_cause_and_comes_back(
    tmp_path, postgres_url, postgres, capsys
):
    async with served(tmp_path, spec(), database_url=postgres_url) as server:
        logs.configure()
        name = make_url(postgres_url).database
        admin = await postgres.connect()
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await postgres.break_connections(postgres_url)
        assert (await server.service.not_ready()).reason == "database-away"
        status, problem = await server.operator("GET", "/tasks")
        assert (status, problem["reason"]) == (503, "database-away")
        told = lines(capsys)
        (refused_,) = of("refused", told)
        assert refused_["request_id"] == problem["request_id"]
        assert len(of("database-away", told)) == 1
        polls = server.service.core.metrics.poll_failures
        async with asyncio.timeout(QUIET_S):
            while polls._value.get() < 3:
                await asyncio.sleep(server.settings.poll_s)
                told += lines(capsys)
        told += lines(capsys)
        assert len(of("poll-failed", told)) <= 1  # of the poll that was under way
        for line in of("database-away", told):
            assert line["error"].startswith(("asyncpg.", "sqlalchemy."))
            assert line["message"]
            assert "site-packages" not in line.get("exception", "")
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
        assert await server.service.not_ready() is None
        assert finished(await run(devices(server, 4))) == 4
