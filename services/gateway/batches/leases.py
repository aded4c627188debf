"""Who works on a batch: a lease in its row, and a fence that every change of hands raises.

A process that lost its lease, because it hung or was cut off, still believes that it works on the batch. All it writes
names the fence that it was given, so after the change of hands it changes nothing any more.
"""

import sqlalchemy as sa

from services.gateway.batches.rows import ENDED, BatchRow, Lease, LeaseLostError, held
from services.gateway.batches.tables import batches
from services.runtime.database import Database
from services.runtime.owners import NOW, has_ended


class Leases:
    """The leases of one process.

    Args:
        database: Where the batches are.
        owner: The process's name, of `new_owner`.
        seconds: How long a batch is held without a sign of life.
    """

    def __init__(self, database: Database, *, owner: str, seconds: float) -> None:
        self._database = database
        self._owner = owner
        self.seconds = seconds
        self._now = sa.literal_column(NOW[database.dialect], sa.Double)

    async def claim(self) -> Lease | None:
        """Take a batch that nobody works on, of the tenant of whose batches the fewest are being worked on."""
        c = batches.c
        other = batches.alias()
        busy = (
            sa.select(sa.func.count())
            .where(other.c.tenant == c.tenant, other.c.status.not_in(ENDED), other.c.leased_until > self._now)
            .scalar_subquery()
        )
        free = sa.select(c.number).where(c.status.not_in(ENDED), c.leased_until <= self._now)
        async with self._database.read() as connection:
            if (await connection.execute(free.limit(1))).first() is None:
                return None  # without the writers' lock: most looks find nothing
        first = free.order_by(busy, c.number).limit(1).with_for_update(skip_locked=True, of=batches)
        async with self._database.write() as connection:
            number = (await connection.execute(first)).scalar_one_or_none()
            if number is None:
                return None
            values = {"owner": self._owner, "leased_until": self._now + self.seconds, "fence": c.fence + 1}
            taken = sa.update(batches).where(c.number == number, c.leased_until <= self._now)
            query = taken.values(**values).returning(batches)
            row: BatchRow | None = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else Lease(batch=row, fence=row["fence"])

    async def extend(self, lease: Lease) -> BatchRow:
        """Hold a batch for longer; answers how it stands.

        Raises:
            LeaseLostError: If another process has it, or it has ended.
        """
        query = sa.update(batches).where(*held(lease)).values(leased_until=self._now + self.seconds)
        async with self._database.write() as connection:
            found = await connection.execute(query.returning(batches))
        row: BatchRow | None = found.mappings().one_or_none()
        if row is None:
            raise LeaseLostError
        return row

    async def release(self, lease: Lease) -> None:
        """Let another process take a batch at once."""
        async with self._database.write() as connection:
            await connection.execute(sa.update(batches).where(*held(lease)).values(owner="", leased_until=0))

    async def release_dead(self) -> None:
        """Free the batches of processes of this machine that are seen to be gone."""
        c = batches.c
        query = sa.select(c.owner).where(c.status.not_in(ENDED), c.owner != "", c.leased_until > self._now).distinct()
        async with self._database.read() as connection:
            owners = (await connection.execute(query)).scalars().all()
        gone = [owner for owner in owners if has_ended(owner)]
        if gone:
            async with self._database.write() as connection:
                await connection.execute(sa.update(batches).where(c.owner.in_(gone)).values(owner="", leased_until=0))
