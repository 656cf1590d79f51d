"""Large inputs over many slots; today the hashing that both routing and sharding stand on."""
