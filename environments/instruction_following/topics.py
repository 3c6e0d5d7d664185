"""Everyday topics for generated tasks: per topic three keywords and, for each, a sentence that has topic and keyword, no comma,
and 10 words or more. Train and held-out share no topic and no keyword."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """phrase: how a request calls it ("a dog"). sentences: keyword -> sentence."""

    phrase: str
    sentences: dict[str, str]

    @property
    def name(self) -> str:
        """The one word that every sentence has ("dog")."""
        return self.phrase.split()[-1]


def _read(text: str) -> list[Topic]:
    """One topic a block: its phrase, then lines `keyword: sentence`."""
    topics = []
    for block in text.strip().split("\n\n"):
        phrase, *lines = block.split("\n")
        topics.append(Topic(phrase, dict(line.split(": ", 1) for line in lines)))
    return topics


TRAIN = _read("""
a dog
bone: My dog likes to chew a big bone in the garden all day.
friend: A dog can be a good friend who waits for you every day.
walk: Every morning the dog is happy when we go for a long walk.

a cat
sofa: The cat sleeps on the sofa for many hours after a good meal.
mouse: Our cat ran after a small mouse but it was far too slow.
whiskers: A cat uses its whiskers to feel the way in a dark room.

coffee
morning: Many people drink hot coffee in the morning before they go to work.
sugar: I like my coffee with a little sugar and a lot of milk.
cafe: We drank coffee in a small cafe near the river on Sunday.

rain
umbrella: I took my umbrella because the rain was heavy and the wind was cold.
window: The rain ran down the window while we read our books at home.
flowers: After the rain the flowers in the park looked fresh and very bright.

bread
oven: The smell of fresh bread from the oven fills the whole kitchen.
butter: Warm bread with butter is the best way to begin a slow day.
bakery: We buy our bread at the bakery around the corner every single week.

a river
bridge: You can cross the river on an old bridge made of grey stone.
boat: A small boat moved slowly down the river in the evening light.
fish: There are many fish in the river because the water is clean.

school
teacher: Our school has a kind teacher who explains every lesson with a smile.
pencil: On the first day of school I lost my pencil and my bag.
lesson: The best lesson at school was about stars and planets last week.

tea
honey: My mother drinks tea with honey when she has a cold in winter.
kettle: The kettle is on the stove and soon the tea will be ready.
biscuit: A cup of tea and a biscuit make a quiet afternoon much better.

a bicycle
helmet: Always wear a helmet when you ride your bicycle on a busy road.
wheel: The front wheel of my bicycle is broken so I have to walk.
hill: It is hard to ride a bicycle up a hill on hot days.

a garden
tomato: We grow tomato plants in our garden and eat them in the summer.
bench: There is a bench in the garden where my father likes to read.
spade: He used a spade to dig a deep hole in the garden soil.

music
guitar: She makes music with her old guitar and sings about her home.
dance: When the music starts all the people in the room begin to dance.
piano: The music of a piano can be soft and sad at the same time.

winter
snow: In winter the snow covers the roofs and the streets are quiet.
gloves: I wear warm gloves in winter because my hands are always cold.
soup: Hot soup is a good meal for a dark and cold winter evening.

a train
ticket: You need a ticket for the train before you can sit down inside.
station: The train left the station five minutes late because of the heavy snow.
journey: A long journey by train is a good time to read a book.

an apple
tree: The apple fell from the tree and rolled down into the green grass.
basket: She put every red apple in a basket and carried it home.
cake: My aunt bakes a sweet apple cake for us every year in autumn.

the beach
sand: The children play in the warm sand at the beach until the evening.
waves: We sat on the beach and listened to the waves for an hour.
shell: I found a white shell on the beach and gave it to her.

a market
cheese: At the market we bought cheese and bread from an old farmer.
price: The price of fruit at the market is lower in the late afternoon.
crowd: There was a big crowd at the market on the day before the feast.
""")

HELDOUT = _read("""
a horse
saddle: She put the saddle on her horse and rode out to the fields.
stable: The horse stands in the stable and eats hay every single night.
carrot: My brother gave the horse a carrot and it followed him all day.

a library
shelf: The book you want is on the top shelf in the library downtown.
silence: People like the library because of the silence and the soft light.
novel: I read a long novel in the library while it was cold outside.

a pizza
mushroom: My sister orders a pizza with mushroom and onion every Friday night.
slice: He ate the last slice of pizza before we came back home.
restaurant: The new restaurant near our house makes the best pizza in the city.

the moon
night: The moon was so bright that night that we needed no lamp.
cloud: A dark cloud moved slowly in front of the moon and hid it.
rocket: A rocket needs about three days to carry people to the moon.

football
goal: She scored a goal in the last minute of the football match.
stadium: The stadium was full for the big football game on Saturday.
coach: The football coach told us to run more and to talk less.

a birthday
candles: There were nine candles on the cake for her birthday last week.
gift: I got a birthday gift from my uncle and it was a watch.
party: We had a birthday party with games and songs in the yard.

a mountain
path: The path to the top of the mountain is steep and narrow.
tent: We slept in a tent on the mountain and saw many stars.
eagle: An eagle flew in circles high over the mountain all afternoon.

a kitchen
knife: There is a sharp knife in the kitchen so please be careful.
spoon: I dropped a spoon on the kitchen floor and woke the baby.
recipe: We tried a new recipe in the kitchen and it was very good.
""")

ENDINGS = {
    "train": [
        "That is all.",
        "The end.",
        "Have a nice day.",
        "See you soon.",
        "I hope this helps.",
        "Thank you for reading.",
        "What do you think?",
        "Good luck!",
    ],
    "heldout": ["Until next time.", "Take care of yourself.", "Now it is your turn.", "Goodbye, my friend."],
}
