"""Generates the corpus of the demo model: what a device assistant is asked.

Every example is a line `{"messages": [...], "answer": "...", "skill": "..."}`: the chat so far and
the one right answer. Examples come from templates and tables in this file and a random generator
with a fixed seed; no outside text is used.

Held-out split: each example has a key, and a fixed share of the keys (by hash) is never used for
training. For skills that can be computed or copied the key is the content itself (these two
operands, this room at this brightness), so the held-out questions ask for things never seen in
any wording. For skills that are tables (capitals, translations, unit tables) the key is the
content together with the wording: a fact cannot be known without having been told once. For fixed
phrases (greetings, "next song") the key is the text exactly as typed.
"""

import argparse
import json
import random
import zlib
from pathlib import Path

HELD_OUT_PERCENT = 6

# ----------------------------------------------------------------------------- tables

ROOMS = (
    "kitchen", "bedroom", "living room", "bathroom", "hallway", "garage", "office", "garden",
    "balcony", "basement", "dining room", "attic",
)  # fmt: skip
COLORS = ("red", "green", "blue", "yellow", "white", "orange", "purple", "pink")
PLACES = (
    "home", "work", "the airport", "the train station", "the pharmacy", "the hospital",
    "the supermarket", "the beach", "the museum", "the park", "the library", "the gas station",
    "the town hall", "the post office", "the university", "the zoo", "the bakery", "the harbour",
    "the stadium", "the cinema", "the hotel", "the school",
)  # fmt: skip
STREETS = (
    "Main Street", "Park Avenue", "Mill Road", "Station Road", "Church Lane", "Oak Street",
    "River Street", "Hill Road", "Garden Lane", "Bridge Street", "King Street", "Lake Avenue",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Karim",
    "Lena", "Mario", "Nina", "Oscar", "Paula", "Rosa", "Sam", "Tom", "Yuki", "mum", "dad",
)  # fmt: skip
SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
TENS_WORDS = {30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31,
    "August": 31, "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome",
    "Portugal": "Lisbon", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels",
    "the Netherlands": "Amsterdam", "Denmark": "Copenhagen", "Sweden": "Stockholm",
    "Norway": "Oslo", "Finland": "Helsinki", "Poland": "Warsaw", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "the United Kingdom": "London",
    "the United States": "Washington", "Canada": "Ottawa", "Mexico": "Mexico City",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima",
    "Cuba": "Havana", "Egypt": "Cairo", "Kenya": "Nairobi", "Morocco": "Rabat",
    "Ghana": "Accra", "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Iceland": "Reykjavik", "Croatia": "Zagreb", "Bulgaria": "Sofia", "Romania": "Bucharest",
    "Australia": "Canberra", "New Zealand": "Wellington", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "South Korea": "Seoul", "Indonesia": "Jakarta", "Iran": "Tehran",
    "Iraq": "Baghdad", "Nepal": "Kathmandu", "Colombia": "Bogota",
}  # fmt: skip
UNKNOWN_COUNTRIES = (
    "Atlantis", "Narnia", "Wonderland", "Utopia", "Bolivia", "Laos", "Chad", "Malta", "Estonia",
    "Jamaica", "Senegal", "Mongolia", "Paraguay", "Cyprus", "Qatar", "Fiji", "Zambia", "Albania",
)  # fmt: skip

# Question wordings -> the answer. Every wording of a fact is a line of its own.
FACTS = (
    (("how many legs does a spider have", "how many legs has a spider", "number of legs of a spider"),
     "A spider has 8 legs."),
    (("how many legs does an insect have", "how many legs has an insect", "number of legs of an insect"),
     "An insect has 6 legs."),
    (("how many legs does a dog have", "how many legs has a dog", "number of legs of a dog"),
     "A dog has 4 legs."),
    (("how many planets are there", "how many planets are in the solar system", "number of planets in the solar system"),
     "The solar system has 8 planets."),
    (("what is the largest planet", "which planet is the biggest", "name the largest planet"),
     "The largest planet is Jupiter."),
    (("what is the smallest planet", "which planet is the smallest", "name the smallest planet"),
     "The smallest planet is Mercury."),
    (("which planet is the red planet", "what is the red planet", "which planet is called the red planet"),
     "The red planet is Mars."),
    (("at what temperature does water boil", "when does water boil", "what is the boiling point of water"),
     "Water boils at 100 degrees Celsius."),
    (("at what temperature does water freeze", "when does water freeze", "what is the freezing point of water"),
     "Water freezes at 0 degrees Celsius."),
    (("how many days are in a year", "how many days does a year have", "how long is a year in days"),
     "A year has 365 days."),
    (("how many months are in a year", "how many months does a year have", "number of months in a year"),
     "A year has 12 months."),
    (("how many days are in a week", "how many days does a week have", "number of days in a week"),
     "A week has 7 days."),
    (("how many continents are there", "how many continents does the earth have", "number of continents"),
     "There are 7 continents."),
    (("what is the largest ocean", "which ocean is the biggest", "name the largest ocean"),
     "The largest ocean is the Pacific."),
    (("what is the highest mountain", "which mountain is the highest", "name the tallest mountain"),
     "The highest mountain is Mount Everest."),
    (("what is the fastest animal", "which animal is the fastest", "name the fastest land animal"),
     "The fastest land animal is the cheetah."),
    (("what is the largest animal", "which animal is the biggest", "name the largest animal"),
     "The largest animal is the blue whale."),
    (("what is the tallest animal", "which animal is the tallest", "name the tallest animal"),
     "The tallest animal is the giraffe."),
    (("what color is the sky", "which colour does the sky have", "what is the color of the sky"),
     "The sky is blue."),
    (("what color is grass", "which colour does grass have", "what is the color of grass"),
     "Grass is green."),
    (("what color is a banana", "which colour does a banana have", "what is the color of a banana"),
     "A banana is yellow."),
    (("what color is snow", "which colour does snow have", "what is the color of snow"),
     "Snow is white."),
    (("how many letters are in the alphabet", "how many letters does the alphabet have", "number of letters in the english alphabet"),
     "The English alphabet has 26 letters."),
    (("how many strings does a violin have", "how many strings has a violin", "number of strings of a violin"),
     "A violin has 4 strings."),
    (("how many strings does a guitar have", "how many strings has a guitar", "number of strings of a guitar"),
     "A guitar has 6 strings."),
    (("how many sides does a triangle have", "how many sides has a triangle", "number of sides of a triangle"),
     "A triangle has 3 sides."),
    (("how many sides does a hexagon have", "how many sides has a hexagon", "number of sides of a hexagon"),
     "A hexagon has 6 sides."),
    (("what is the chemical symbol for gold", "what is the symbol of gold", "which symbol does gold have"),
     "The symbol of gold is Au."),
    (("what is the chemical symbol for iron", "what is the symbol of iron", "which symbol does iron have"),
     "The symbol of iron is Fe."),
    (("what is the chemical symbol for water", "what is the formula of water", "which formula does water have"),
     "The formula of water is H2O."),
    (("who wrote hamlet", "who is the author of hamlet", "which author wrote hamlet"),
     "Hamlet was written by William Shakespeare."),
    (("who painted the mona lisa", "who is the painter of the mona lisa", "which artist painted the mona lisa"),
     "The Mona Lisa was painted by Leonardo da Vinci."),
    (("what language is spoken in brazil", "which language do people speak in brazil", "what do they speak in brazil"),
     "People in Brazil speak Portuguese."),
    (("what language is spoken in austria", "which language do people speak in austria", "what do they speak in austria"),
     "People in Austria speak German."),
    (("what currency is used in japan", "which money do they use in japan", "what is the currency of japan"),
     "The currency of Japan is the yen."),
    (("what currency is used in france", "which money do they use in france", "what is the currency of france"),
     "The currency of France is the euro."),
    (("what do bees make", "what do bees produce", "which food do bees make"),
     "Bees make honey."),
    (("what do cows drink", "what does a cow drink", "what do cows usually drink"),
     "Cows drink water."),
    (("how many hours are in a day", "how many hours does a day have", "number of hours in a day"),
     "A day has 24 hours."),
    (("how many centimeters are in a meter", "how many centimeters does a meter have", "number of centimeters in a meter"),
     "A meter has 100 centimeters."),
)  # fmt: skip

LANGUAGES = ("English", "German", "French", "Spanish", "Japanese")
PHRASES = (
    ("good morning", "Guten Morgen", "bonjour", "buenos días", "おはようございます"),
    ("good evening", "Guten Abend", "bonsoir", "buenas tardes", "こんばんは"),
    ("good night", "Gute Nacht", "bonne nuit", "buenas noches", "おやすみなさい"),
    ("hello", "hallo", "salut", "hola", "こんにちは"),
    ("goodbye", "auf Wiedersehen", "au revoir", "adiós", "さようなら"),
    ("see you tomorrow", "bis morgen", "à demain", "hasta mañana", "また明日"),
    ("thank you", "danke", "merci", "gracias", "ありがとう"),
    ("please", "bitte", "s'il vous plaît", "por favor", "お願いします"),
    ("excuse me", "Entschuldigung", "excusez-moi", "perdón", "すみません"),
    ("I am sorry", "es tut mir leid", "je suis désolé", "lo siento", "ごめんなさい"),
    ("yes", "ja", "oui", "sí", "はい"),
    ("no", "nein", "non", "no", "いいえ"),
    ("how are you?", "wie geht es dir?", "comment ça va ?", "¿cómo estás?", "お元気ですか"),
    ("I am fine", "mir geht es gut", "je vais bien", "estoy bien", "元気です"),
    ("what is your name?", "wie heißt du?", "comment tu t'appelles ?", "¿cómo te llamas?", "お名前は何ですか"),
    ("where is the station?", "wo ist der Bahnhof?", "où est la gare ?", "¿dónde está la estación?", "駅はどこですか"),
    ("where is the toilet?", "wo ist die Toilette?", "où sont les toilettes ?", "¿dónde está el baño?", "トイレはどこですか"),
    ("how much does it cost?", "wie viel kostet das?", "combien ça coûte ?", "¿cuánto cuesta?", "いくらですか"),
    ("I do not understand", "ich verstehe nicht", "je ne comprends pas", "no entiendo", "わかりません"),
    ("do you speak English?", "sprichst du Englisch?", "parlez-vous anglais ?", "¿hablas inglés?", "英語を話せますか"),
    ("help!", "Hilfe!", "au secours !", "¡ayuda!", "助けて"),
    ("I am hungry", "ich habe Hunger", "j'ai faim", "tengo hambre", "お腹が空きました"),
    ("I am thirsty", "ich habe Durst", "j'ai soif", "tengo sed", "喉が渇きました"),
    ("the bill, please", "die Rechnung, bitte", "l'addition, s'il vous plaît", "la cuenta, por favor", "お会計お願いします"),
    ("a coffee, please", "einen Kaffee, bitte", "un café, s'il vous plaît", "un café, por favor", "コーヒーをお願いします"),
    ("have a nice day", "einen schönen Tag", "bonne journée", "que tengas un buen día", "良い一日を"),
    ("happy birthday", "alles Gute zum Geburtstag", "joyeux anniversaire", "feliz cumpleaños", "お誕生日おめでとう"),
    ("enjoy your meal", "guten Appetit", "bon appétit", "buen provecho", "いただきます"),
    ("I love you", "ich liebe dich", "je t'aime", "te quiero", "愛しています"),
    ("water", "Wasser", "eau", "agua", "水"),
    ("bread", "Brot", "pain", "pan", "パン"),
    ("today", "heute", "aujourd'hui", "hoy", "今日"),
    ("tomorrow", "morgen", "demain", "mañana", "明日"),
    ("friend", "Freund", "ami", "amigo", "友達"),
    ("dog", "Hund", "chien", "perro", "犬"),
    ("cat", "Katze", "chat", "gato", "猫"),
    ("house", "Haus", "maison", "casa", "家"),
    ("book", "Buch", "livre", "libro", "本"),
)  # fmt: skip
# How one asks for a translation in another language than English: {p} phrase, {t} target language.
ASK_IN = {
    "German": (("wie sagt man {p} auf {t}?", "was heißt {p} auf {t}?", "übersetze {p} ins {t}e"),
               {"English": "Englisch", "French": "Französisch", "Spanish": "Spanisch", "Japanese": "Japanisch"}),
    "French": (("comment dit-on {p} en {t} ?", "traduis {p} en {t}", "que veut dire {p} en {t} ?"),
               {"English": "anglais", "German": "allemand", "Spanish": "espagnol", "Japanese": "japonais"}),
    "Spanish": (("¿cómo se dice {p} en {t}?", "traduce {p} al {t}", "¿qué significa {p} en {t}?"),
                {"English": "inglés", "German": "alemán", "French": "francés", "Japanese": "japonés"}),
    "Japanese": (("{p}は{t}で何と言いますか", "{p}を{t}に訳してください", "{p}は{t}で何ですか"),
                 {"English": "英語", "German": "ドイツ語", "French": "フランス語", "Spanish": "スペイン語"}),
}  # fmt: skip

IDENTITY = "I am the Nestd demo model, a small Gemma 3n that runs on this device."
ABILITIES = (
    "I can control lights, volume, timers and more, do small sums, convert units, translate short "
    "phrases and answer simple questions."
)
REFUSAL = "Sorry, I do not know that. I am only a small demo model."
GREETING = "Hello! How can I help you?"
WELCOME = "You are welcome!"
FAREWELL = "Goodbye!"
NOT_GIVEN = "I do not know, the state does not say."

# ----------------------------------------------------------------------------- helpers


def held_out(key):
    """Whether a key belongs to the held-out split; a hash, so it needs no stored list."""
    return zlib.crc32(repr(key).encode()) % 100 < HELD_OUT_PERCENT


def in_words(n):
    """A number as one says it, or None where the corpus always writes digits."""
    if n <= 20:
        return SMALL_WORDS[n]
    tens, ones = n - n % 10, n % 10
    if tens not in TENS_WORDS and tens != 20:
        return None
    word = TENS_WORDS.get(tens, "twenty")
    return word if ones == 0 else f"{word}-{SMALL_WORDS[ones]}"


def spoken(rng, n, share=0.25):
    """`n` in digits, or sometimes in words."""
    word = in_words(n) if n < 100 and rng.random() < share else None
    return word or str(n)


def action(kind, /, **slots):
    """The JSON of an action, always with the same spacing and order."""
    return json.dumps({"action": kind, **slots}, ensure_ascii=False)


def command(rng, text):
    """Dresses an imperative the way people speak to a device."""
    front = rng.choice(("", "", "", "", "please ", "hey, ", "can you ", "could you ", "ok, ", "I want you to ", "hi, "))
    back = rng.choice(("", "", "", "", "", " please", ", please", " now", " for me", ", thanks"))
    mark = "?" if front.startswith(("can", "could")) else "."
    return casual(rng, front + text + back, mark)


def question(rng, text):
    """Dresses a question."""
    front = rng.choice(("", "", "", "", "", "tell me, ", "hey, ", "do you know ", "please tell me ", "quick question: "))
    return casual(rng, front + text, "?")


def casual(rng, text, mark):
    """Varies capitals and the closing mark, as typing does. Names in the text stay as they are."""
    style = rng.random()
    if style < 0.25:
        text = text.lower()
    elif style < 0.9:
        text = text[0].upper() + text[1:]
    closed = text[-1] in "?!.？"
    if not closed and rng.random() < 0.6:
        text += mark
    elif closed and rng.random() < 0.2:
        text = text[:-1].rstrip()
    return text


def quoted(rng, phrase):
    """A phrase to be translated, in one of the usual quotes or in none."""
    a, b = rng.choice((("'", "'"), ('"', '"'), ("", ""), ("“", "”")))
    return a + phrase + b


def capital_first(text):
    """The first letter in upper case, skipping an opening mark."""
    for i, ch in enumerate(text):
        if ch.isalpha():
            return text[:i] + ch.upper() + text[i + 1 :]
    return text


def pick(rng, options):
    """An option and its number, which goes into the key of table skills."""
    i = rng.randrange(len(options))
    return i, options[i]


def a_number(rng, top):
    """A number up to `top`, small ones more often."""
    return rng.randint(0, min(top, 20)) if rng.random() < 0.35 else rng.randint(0, top)


# Each skill is a function of the random generator that returns (key, turns, answer); `turns` is the
# chat so far: user texts and assistant texts alternating, ending with a user text. A key of None
# stands for the turns themselves.

# ----------------------------------------------------------------------------- device actions


def lights(rng):
    room = rng.choice(ROOMS)
    kind = rng.random()
    if kind < 0.5:
        state = rng.choice(("on", "off"))
        text = rng.choice((
            f"turn {state} the {room} light", f"turn the {room} lights {state}", f"switch {state} the lights in the {room}",
            f"switch the {room} light {state}", f"lights {state} in the {room}", f"{room} lights {state}",
            f"turn {state} the light in the {room}", f"put the {room} light {state}",
        ))  # fmt: skip
        return ("lights", room, state), [command(rng, text)], action("lights", room=room, state=state)
    if kind < 0.8:
        level = rng.randrange(5, 101, 5)
        n = spoken(rng, level, 0.15)
        percent = rng.choice((" percent", "%", " %"))
        if not n.isdigit():
            percent = " percent"
        text = rng.choice((
            f"set the {room} lights to {n}{percent}", f"dim the {room} light to {n}{percent}",
            f"set the brightness in the {room} to {n}{percent}", f"{room} light at {n}{percent}",
            f"make the {room} lights {n}{percent} bright", f"change the light in the {room} to {n}{percent}",
        ))  # fmt: skip
        return ("bright", room, level), [command(rng, text)], action("lights", room=room, brightness=level)
    color = rng.choice(COLORS)
    text = rng.choice((
        f"make the {room} light {color}", f"set the {room} lights to {color}", f"turn the {room} lights {color}",
        f"change the {room} light to {color}", f"I want {color} light in the {room}", f"{color} light in the {room}",
    ))  # fmt: skip
    return ("color", room, color), [command(rng, text)], action("lights", room=room, color=color)


def volume(rng):
    kind = rng.random()
    if kind < 0.55:
        level = rng.randint(0, 100)
        n = spoken(rng, level, 0.15)
        percent = rng.choice((" percent", "%", "", ""))
        if not n.isdigit() and percent:
            percent = " percent"
        text = rng.choice((
            f"set the volume to {n}{percent}", f"volume to {n}{percent}", f"volume {n}{percent}",
            f"change the volume to {n}{percent}", f"put the sound at {n}{percent}", f"set the sound level to {n}{percent}",
        ))  # fmt: skip
        return ("volume", level), [command(rng, text)], action("volume", level=level)
    change, texts = rng.choice((
        ("up", ("turn up the volume", "turn the volume up", "make it louder", "louder", "volume up", "increase the volume", "it is too quiet")),
        ("down", ("turn down the volume", "turn the volume down", "make it quieter", "quieter", "volume down", "lower the volume", "it is too loud")),
        ("mute", ("mute the sound", "mute", "turn the sound off", "be silent", "switch off the sound", "no sound")),
    ))  # fmt: skip
    i, text = pick(rng, texts)
    return None, [command(rng, text)], action("volume", change=change)


def timer(rng):
    unit, top = rng.choice((("minutes", 90), ("minutes", 90), ("seconds", 90), ("hours", 12)))
    n = rng.randint(1, top)
    one = unit[:-1] if n == 1 else unit
    amount = f"{spoken(rng, n)} {one}"
    text = rng.choice((
        f"set a timer for {amount}", f"timer {amount}", f"start a timer of {amount}", f"set a {spoken(rng, n)} {unit[:-1]} timer",
        f"remind me in {amount}", f"count down {amount}", f"start a countdown of {amount}", f"wake me in {amount}",
    ))  # fmt: skip
    return ("timer", unit, n), [command(rng, text)], action("timer", **{unit: n})


def alarm(rng):
    if rng.random() < 0.12:
        i, text = pick(rng, ("cancel the alarm", "delete my alarm", "turn off the alarm", "stop the alarm", "no alarm tomorrow"))
        return None, [command(rng, text)], action("alarm", state="off")
    if rng.random() < 0.12:
        i, text = pick(rng, ("cancel the timer", "delete the timer", "turn off the timer", "stop the timer", "end the countdown"))
        return None, [command(rng, text)], action("timer", state="off")
    hour, minute = rng.randrange(24), rng.randrange(0, 60, 5)
    if rng.random() < 0.4:
        half = "am" if hour < 12 else "pm"
        said = f"{hour % 12 or 12}" + (f":{minute:02d}" if minute else "") + f" {half}"
    else:
        said = f"{hour}:{minute:02d}" if rng.random() < 0.5 else f"{hour:02d}:{minute:02d}"
    text = rng.choice((
        f"set an alarm for {said}", f"wake me up at {said}", f"alarm at {said}", f"set the alarm to {said}", f"wake me at {said}",
    ))  # fmt: skip
    return ("alarm", hour, minute), [command(rng, text)], action("alarm", time=f"{hour:02d}:{minute:02d}")


def navigate(rng):
    kind = rng.random()
    if kind < 0.4:
        place = rng.choice(PLACES)
    elif kind < 0.6:
        place = rng.choice(list(CAPITALS.values()))
    else:
        place = f"{rng.randint(1, 99)} {rng.choice(STREETS)}"
    to = "home" if place == "home" else f"to {place}"
    i, text = pick(rng, (
        f"navigate {to}", f"take me {to}", f"drive {to}", f"show me the way {to}", f"how do I get {to}",
        f"start navigation {to}", f"directions {to}", f"I want to go {to}", f"bring me {to}", f"find a route {to}",
    ))  # fmt: skip
    key = ("navigate", place) if place[0].isdigit() else ("navigate", place, i)
    text = command(rng, text)
    if place[0].isupper() or place[0].isdigit():
        text = restore(text, place)
    return key, [text], action("navigate", to=place)


def restore(text, name):
    """Undoes lower case for a name: what is copied into the answer must be there to copy."""
    at = text.lower().find(name.lower())
    return text[:at] + name + text[at + len(name) :]


def camera(rng):
    mode, texts = rng.choice((
        ("photo", ("take a photo", "take a picture", "make a photo", "open the camera", "shoot a picture", "photo", "snap a photo")),
        ("selfie", ("take a selfie", "make a selfie", "take a photo of me", "selfie", "use the front camera", "take a picture of me")),
        ("video", ("record a video", "start recording", "film this", "take a video", "start a video", "make a video")),
        ("stop", ("stop recording", "stop the video", "end the recording", "close the camera", "stop filming", "turn off the camera")),
        ("scan", ("scan this code", "scan a QR code", "read this QR code", "scan the code", "scan this document")),
    ))  # fmt: skip
    i, text = pick(rng, texts)
    return None, [command(rng, text)], action("camera", mode=mode)


def music(rng):
    state, texts = rng.choice((
        ("play", ("play some music", "play music", "start the music", "put on some music", "I want to hear music")),
        ("pause", ("pause the music", "pause", "stop the music", "pause the song", "hold the music")),
        ("next", ("next song", "skip this song", "play the next song", "skip", "next track")),
        ("previous", ("previous song", "go back one song", "play the last song again", "previous track", "back to the song before")),
    ))  # fmt: skip
    i, text = pick(rng, texts)
    return None, [command(rng, text)], action("music", state=state)


def call(rng):
    name = rng.choice(NAMES)
    i, text = pick(rng, (f"call {name}", f"phone {name}", f"ring {name}", f"make a call to {name}", f"give {name} a call", f"dial {name}"))
    text = restore(command(rng, text), name)
    return ("call", name, i), [text], action("call", name=name)


def heating(rng):
    n = rng.randint(10, 30)
    room = rng.choice(ROOMS[:7])
    text = rng.choice((
        f"set the heating in the {room} to {spoken(rng, n)} degrees", f"heat the {room} to {spoken(rng, n)} degrees",
        f"make it {spoken(rng, n)} degrees in the {room}", f"{room} heating to {spoken(rng, n)}",
        f"set the {room} temperature to {spoken(rng, n)} degrees",
    ))  # fmt: skip
    return ("heating", room, n), [command(rng, text)], action("heating", room=room, degrees=n)


def toggle(rng):
    thing = rng.choice(("wifi", "bluetooth", "flashlight", "airplane mode", "dark mode", "hotspot"))
    state = rng.choice(("on", "off"))
    i, text = pick(rng, (
        f"turn {state} {thing}", f"turn {thing} {state}", f"switch {thing} {state}", f"{thing} {state}",
        f"{'enable' if state == 'on' else 'disable'} {thing}", f"{'activate' if state == 'on' else 'deactivate'} {thing}",
    ))  # fmt: skip
    return ("toggle", thing, state, i), [command(rng, text)], action(thing, state=state)


ACTIONS = ((lights, 6), (volume, 3), (timer, 4), (alarm, 3), (navigate, 3), (camera, 2), (music, 2), (call, 2), (heating, 2), (toggle, 2))


def act(rng):
    return weighted(rng, ACTIONS)(rng)


def weighted(rng, options):
    return rng.choices([o for o, _ in options], [w for _, w in options])[0]


# ----------------------------------------------------------------------------- numbers


def arithmetic(rng):
    op = rng.choices("+-*/", (4, 3, 2, 1))[0]
    if op in "+-":
        a, b = a_number(rng, 99), a_number(rng, 99)
        if op == "-" and a < b:
            a, b = b, a
        result = a + b if op == "+" else a - b
        key = (op, a, b)
    else:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        result = a * b
        if op == "/":
            a, result = a * b, a
        key = None
    x, y = spoken(rng, a, 0.1), spoken(rng, b, 0.1)
    texts = {
        "+": (f"what is {x} plus {y}", f"{a} + {b}", f"{a}+{b}", f"how much is {x} plus {y}", f"add {x} and {y}", f"what is {a} + {b}",
              f"calculate {a} + {b}", f"{x} plus {y}", f"what is the sum of {x} and {y}"),
        "-": (f"what is {x} minus {y}", f"{a} - {b}", f"{a}-{b}", f"how much is {x} minus {y}", f"subtract {y} from {x}", f"what is {a} - {b}",
              f"calculate {a} - {b}", f"{x} minus {y}", f"take {y} away from {x}"),
        "*": (f"what is {x} times {y}", f"{a} * {b}", f"{a} x {b}", f"how much is {x} times {y}", f"multiply {x} by {y}", f"what is {a} * {b}",
              f"calculate {a} * {b}", f"{x} times {y}", f"what is {a} x {b}"),
        "/": (f"what is {x} divided by {y}", f"{a} / {b}", f"{a}/{b}", f"how much is {x} divided by {y}", f"divide {x} by {y}", f"what is {a} / {b}",
              f"calculate {a} / {b}", f"{x} divided by {y}", f"{x} over {y}"),
    }[op]  # fmt: skip
    i, text = pick(rng, texts)
    return key or (op, a, b, i), [casual(rng, text, "?")], f"{a} {op} {b} = {result}"


# unit, unit, factor, largest number, whether the rule is easy to apply to numbers never seen
CONVERSIONS = (
    ("kilometers", "meters", 1000, 99, True), ("meters", "centimeters", 100, 99, True),
    ("centimeters", "millimeters", 10, 99, True), ("kilograms", "grams", 1000, 99, True),
    ("liters", "milliliters", 1000, 99, True), ("hours", "minutes", 60, 24, False),
    ("minutes", "seconds", 60, 30, False), ("days", "hours", 24, 14, False),
    ("weeks", "days", 7, 20, False), ("feet", "inches", 12, 12, False),
    ("years", "months", 12, 12, False), ("meters", "millimeters", 1000, 99, True),
)  # fmt: skip


def units(rng):
    if rng.random() < 0.2:
        c = rng.randrange(-20, 101, 5)
        f = c * 9 // 5 + 32
        if rng.random() < 0.6:
            i, text = pick(rng, (f"convert {c} degrees Celsius to Fahrenheit", f"what is {c} Celsius in Fahrenheit", f"{c} °C in °F", f"how much is {c} °C in Fahrenheit"))
            return ("c", c, i), [casual(rng, text, "?")], f"{c} °C = {f} °F"
        i, text = pick(rng, (f"convert {f} degrees Fahrenheit to Celsius", f"what is {f} Fahrenheit in Celsius", f"{f} °F in °C", f"how much is {f} °F in Celsius"))
        return ("f", f, i), [casual(rng, text, "?")], f"{f} °F = {c} °C"
    big, small, factor, top, rule = rng.choice(CONVERSIONS)
    n = rng.randint(1, top)
    one = big[:-1] if n == 1 else big
    one = "foot" if one == "feet" and n == 1 else one
    x = spoken(rng, n, 0.15)
    back = rng.random() < 0.25
    total = n * factor
    if back:
        texts = (f"how many {big} are {total} {small}", f"convert {total} {small} to {big}", f"{total} {small} in {big}", f"what is {total} {small} in {big}")
        answer = f"{total} {small} = {n} {one}"
    else:
        texts = (f"how many {small} are {x} {one}", f"convert {x} {one} to {small}", f"{x} {one} in {small}", f"what is {x} {one} in {small}",
                 f"how many {small} are in {x} {one}", f"{x} {one} to {small}")  # fmt: skip
        answer = f"{n} {one} = {total} {small}"
    i, text = pick(rng, texts)
    return (big, small, n, back) + (() if rule else (i,)), [casual(rng, text, "?")], answer


def times(rng):
    kind = rng.randrange(8)
    if kind <= 1:
        hour, minute, later = rng.randrange(24), rng.randrange(0, 60, 5), rng.choice((5, 10, 15, 20, 25, 30, 40, 45, 50))
        total = (hour * 60 + minute + later) % 1440
        now = f"{hour:02d}:{minute:02d}"
        text = rng.choice((
            f"it is {now}, what time is it in {later} minutes", f"what time is {later} minutes after {now}",
            f"what is {now} plus {later} minutes", f"it is {now} now, what time will it be in {later} minutes",
        ))  # fmt: skip
        return ("later", now, later), [casual(rng, text, "?")], f"It will be {total // 60:02d}:{total % 60:02d}."
    if kind == 2:
        hour, minute, n = rng.randrange(24), rng.randrange(0, 60, 5), rng.randint(1, 6)
        total = (hour + n) % 24
        now, one = f"{hour:02d}:{minute:02d}", "hour" if n == 1 else "hours"
        text = rng.choice((
            f"it is {now}, what time is it in {spoken(rng, n)} {one}", f"what time is {n} {one} after {now}",
            f"what is {now} plus {n} {one}", f"it is {now} now, what time will it be in {n} {one}",
        ))  # fmt: skip
        return ("hours", now, n), [casual(rng, text, "?")], f"It will be {total:02d}:{minute:02d}."
    if kind == 3:
        hour, minute = rng.randrange(24), rng.randrange(0, 60, 5)
        half = f"{hour % 12 or 12}:{minute:02d} {'am' if hour < 12 else 'pm'}"
        full = f"{hour:02d}:{minute:02d}"
        if rng.random() < 0.6:
            text = rng.choice((f"what is {half} in 24-hour time", f"convert {half} to 24-hour time", f"{half} in 24 hours", f"write {half} in 24-hour format"))
            return ("24", full), [casual(rng, text, "?")], f"{half} is {full}."
        text = rng.choice((f"what is {full} in 12-hour time", f"convert {full} to 12-hour time", f"{full} in am or pm", f"write {full} in 12-hour format"))
        return ("12", full), [casual(rng, text, "?")], f"{full} is {half}."
    if kind == 4:
        day, n = rng.randrange(7), rng.randint(1, 6)
        i, text = pick(rng, (f"today is {DAYS[day]}, what day is it in {spoken(rng, n)} days", f"what day is {n} days after {DAYS[day]}", f"which day comes {n} days after {DAYS[day]}"))
        return ("day", day, n, i), [casual(rng, text, "?")], f"It will be {DAYS[(day + n) % 7]}."
    if kind == 5:
        if rng.random() < 0.5:
            day = rng.randrange(7)
            i, (text, step) = pick(rng, ((f"what day comes after {DAYS[day]}", 1), (f"what day is after {DAYS[day]}", 1), (f"which day comes before {DAYS[day]}", -1),
                                         (f"what day is before {DAYS[day]}", -1), (f"today is {DAYS[day]}, what is tomorrow", 1), (f"today is {DAYS[day]}, what was yesterday", -1)))  # fmt: skip
            other, name = DAYS[(day + step) % 7], DAYS[day]
        else:
            names = list(MONTHS)
            month = rng.randrange(12)
            i, (text, step) = pick(rng, ((f"which month comes after {names[month]}", 1), (f"what month is after {names[month]}", 1), (f"which month comes before {names[month]}", -1),
                                         (f"what month is before {names[month]}", -1)))  # fmt: skip
            other, name = names[(month + step) % 12], names[month]
        answer = f"{other} comes {'after' if step > 0 else 'before'} {name}."
        return ("next", name, i), [casual(rng, text, "?")], answer
    if kind == 6:
        month, days = rng.choice(list(MONTHS.items()))
        if rng.random() < 0.35:
            i, text = pick(rng, (f"how many days has {month}", f"how many days are in {month}", f"how long is {month}", f"number of days in {month}"))
            return ("month", month, i), [casual(rng, text, "?")], f"{month} has {days} days."
        date = rng.randint(1, days - 1)
        text = rng.choice((f"today is {date} {month}, what is the date tomorrow", f"it is {month} {date}, what date is tomorrow", f"which date comes after {date} {month}"))
        return ("date", month, date), [casual(rng, text, "?")], f"It will be {date + 1} {month}."
    hour = rng.randrange(24)
    start, gap = rng.randrange(0, 55, 5), 0
    gap = rng.randrange(5, 60 - start, 5)
    a, b = f"{hour:02d}:{start:02d}", f"{hour:02d}:{start + gap:02d}"
    text = rng.choice((f"how many minutes from {a} to {b}", f"how long is it from {a} to {b}", f"how many minutes are between {a} and {b}", f"it is {a}, how long until {b}"))
    return ("gap", a, b), [casual(rng, text, "?")], f"It is {gap} minutes."


# ----------------------------------------------------------------------------- languages and facts


def translate_pair(rng):
    """A phrase with its source and target language, English more often than the others."""
    phrase = rng.randrange(len(PHRASES))
    source = 0 if rng.random() < 0.6 else rng.randrange(5)
    target = rng.choice([i for i in range(5) if i != source])
    return phrase, source, target


def translated(phrase, target):
    return capital_first(PHRASES[phrase][target])


def translate(rng):
    phrase, source, target = translate_pair(rng)
    said, language = PHRASES[phrase][source], LANGUAGES[target]
    if source and rng.random() < 0.5:
        texts, names = ASK_IN[LANGUAGES[source]]
        i, text = pick(rng, texts)
        if LANGUAGES[source] == "Japanese":
            text = text.format(p=f"「{said}」", t=names[language])
            if rng.random() < 0.3:
                text += "？"
        else:
            text = casual(rng, text.format(p=quoted(rng, said), t=names[language]), "")
        return ("translate", phrase, source, target, "own", i), [text], translated(phrase, target)
    p = quoted(rng, said)
    i, text = pick(rng, (
        f"how do you say {p} in {language}", f"translate {p} into {language}", f"translate {p} to {language}", f"what is {p} in {language}",
        f"{p} in {language}", f"how do I say {p} in {language}", f"say {p} in {language}", f"what does {p} mean in {language}",
    ))  # fmt: skip
    return ("translate", phrase, source, target, i), [casual(rng, text, "?")], translated(phrase, target)


def facts(rng):
    if rng.random() < 0.6:
        country = rng.choice(list(CAPITALS))
        city = CAPITALS[country]
        back = rng.random() < 0.25
        if back:
            i, text = pick(rng, (f"{city} is the capital of which country", f"which country has the capital {city}", f"of which country is {city} the capital"))
            return ("country", country, i), [question(rng, text)], f"{city} is the capital of {country}."
        i, text = pick(rng, (
            f"what is the capital of {country}", f"capital of {country}", f"which city is the capital of {country}", f"name the capital of {country}",
            f"what's the capital of {country}", f"the capital of {country}", f"what is the capital city of {country}",
        ))  # fmt: skip
        return ("capital", country, i), [question(rng, text)], f"The capital of {country} is {city}."
    j, (texts, answer) = pick(rng, FACTS)
    i, text = pick(rng, texts)
    return ("fact", j, i), [question(rng, text)], answer


# ----------------------------------------------------------------------------- the device's state

STATE_FIELDS = ("battery", "wifi", "bluetooth", "volume", "storage", "temperature", "time", "charging")
STATE_WRITTEN = {
    "battery": ("battery {v} %", "battery {v}%", "battery: {v} %", "battery level {v}%", "the battery is at {v} %"),
    "wifi": ("wifi {v}", "wifi: {v}", "Wi-Fi {v}", "the Wi-Fi is {v}"),
    "bluetooth": ("bluetooth {v}", "bluetooth: {v}", "Bluetooth is {v}"),
    "volume": ("volume {v} %", "volume {v}%", "volume: {v} %", "sound at {v} %"),
    "storage": ("storage {v} GB free", "free storage: {v} GB", "{v} GB of storage free"),
    "temperature": ("temperature {v} °C", "temperature: {v} °C", "it is {v} °C"),
    "time": ("time {v}", "time: {v}", "the time is {v}"),
    "charging": ("charging: {v}", "charger {v}", "charger: {v}"),
}
STATE_ASKED = {
    "battery": ("how much battery is left", "what is the battery level", "how full is the battery", "battery level", "how much battery do I have"),
    "wifi": ("is the wifi on", "is wifi on", "is the Wi-Fi switched on", "what is the wifi state"),
    "bluetooth": ("is bluetooth on", "is the bluetooth switched on", "what is the bluetooth state"),
    "volume": ("how loud is it", "what is the volume", "what is the volume level", "how high is the volume"),
    "storage": ("how much storage is free", "how much space is left", "how much free storage do I have", "what is the free storage"),
    "temperature": ("how warm is it", "what is the temperature", "how cold is it", "how many degrees is it"),
    "time": ("what time is it", "what is the time", "tell me the time", "how late is it"),
    "charging": ("is it charging", "is the charger connected", "am I charging", "is the device charging"),
}
STATE_ANSWER = {
    "battery": "The battery is at {v} %.",
    "volume": "The volume is at {v} %.",
    "storage": "{v} GB of storage are free.",
    "temperature": "It is {v} °C.",
    "time": "It is {v}.",
}
SWITCH_NAME = {"wifi": "Wi-Fi", "bluetooth": "Bluetooth"}


def state_value(rng, field):
    if field in ("wifi", "bluetooth"):
        return rng.choice(("on", "off"))
    if field == "charging":
        return rng.choice(("yes", "no"))
    if field == "time":
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return str(rng.randint(*{"battery": (1, 100), "volume": (0, 100), "storage": (1, 99), "temperature": (-9, 40)}[field]))


def state_answer(state, field):
    if field not in state:
        return NOT_GIVEN
    v = state[field]
    if field in SWITCH_NAME:
        return f"{'Yes' if v == 'on' else 'No'}, {SWITCH_NAME[field]} is {v}."
    if field == "charging":
        return "Yes, it is charging." if v == "yes" else "No, it is not charging."
    return STATE_ANSWER[field].format(v=v)


def a_state(rng):
    """A device state and its text, written in one of many ways."""
    fields = rng.sample(STATE_FIELDS, rng.randint(1, 4))
    state = {f: state_value(rng, f) for f in fields}
    parts = [rng.choice(STATE_WRITTEN[f]).format(v=v) for f, v in state.items()]
    joint = rng.choice((", ", ", ", "; ", ". "))
    text = joint.join(parts)
    text = rng.choice(("", "", "device state: ", "state: ", "status: ")) + text
    return state, capital_first(text) if rng.random() < 0.5 else text


def state_question(rng, state):
    """A question about a state; now and then about something the state does not hold."""
    if rng.random() < 0.15:
        if "battery" in state:
            low = int(state["battery"]) < 20
            answer = f"Yes, the battery is low: {state['battery']} %." if low else f"No, the battery is at {state['battery']} %."
            return rng.choice(("should I charge", "is the battery low", "do I need to charge", "should I plug it in")), answer, "low"
    field = rng.choice(list(state)) if rng.random() < 0.85 else rng.choice(STATE_FIELDS)
    return rng.choice(STATE_ASKED[field]), state_answer(state, field), field


def device_state(rng):
    state, text = a_state(rng)
    asked, answer, field = state_question(rng, state)
    key = ("state", tuple(sorted(state.items())), field)
    asked = casual(rng, asked, "?")
    if rng.random() < 0.5:
        return key, [("system", text + rng.choice((".", ""))), asked], answer
    if rng.random() < 0.5:
        return key, [f"{text}. {asked}"], answer
    return key, [rng.choice((f"{text}\n{asked}", f"{asked} {text}", f"{asked}\n{text}"))], answer


# ----------------------------------------------------------------------------- chat

GREET = ("hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "hey you", "good day", "hallo", "bonjour", "hola", "how are you", "hi, how are you", "greetings")
THANK = ("thank you", "thanks", "thanks a lot", "great, thanks", "thank you very much", "many thanks", "perfect, thank you", "merci", "danke")
LEAVE = ("bye", "goodbye", "see you", "good night", "bye bye", "see you later", "that is all", "ciao", "until tomorrow")
WHO = (
    "who are you", "what are you", "what is your name", "what model are you", "which model is this", "are you a human", "are you Gemma", "what are you called",
    "introduce yourself", "who am I talking to", "are you a robot", "tell me about yourself", "what kind of model are you", "are you an AI",
)  # fmt: skip
ABLE = ("what can you do", "what can I ask you", "how can you help me", "help", "what are you able to do", "what do you know", "what are your skills", "what can I do with you", "show me what you can do")
TOPICS = (
    "quantum physics", "the stock market", "football", "love", "politics", "my future", "black holes", "philosophy", "the war", "cooking", "chess", "dinosaurs",
    "the moon landing", "my neighbour", "the latest news", "movies", "religion", "poetry", "the economy", "medicine", "history", "cars", "aliens", "programming",
    "gardening", "the ocean", "tennis", "my taxes", "the universe", "dreams",
)  # fmt: skip
UNKNOWN = (
    "write a poem about {t}", "tell me a story about {t}", "explain {t}", "what do you think about {t}", "who is the expert on {t}", "write an essay about {t}",
    "tell me everything about {t}", "give me advice about {t}", "who invented {t}", "what is the history of {t}", "sing a song about {t}", "tell me a joke about {t}",
    "recommend a book about {t}", "why is {t} so difficult", "what happened in {t} last year",
)  # fmt: skip
UNKNOWN_FIXED = (
    "who won the election", "what will the weather be tomorrow", "what is the weather like", "who will win the world cup", "what is the meaning of life", "how old am I",
    "where did I put my keys", "what did I eat yesterday", "what am I thinking", "who is the president", "what is the price of gold today", "book a flight to Paris",
    "order a pizza", "what is in my fridge", "will it rain today", "who is my best friend", "what is the best phone", "how do I become rich", "tell me a secret",
    "what is the password", "how tall is the president", "write a program", "what is my name", "where do I live",
)  # fmt: skip


def chat(rng):
    kind = rng.random()
    if kind < 0.18:
        _, text = pick(rng, GREET)
        return None, [casual(rng, text, rng.choice("!.?"))], GREETING
    if kind < 0.28:
        i, text = pick(rng, THANK)
        return None, [casual(rng, text, "!")], WELCOME
    if kind < 0.36:
        i, text = pick(rng, LEAVE)
        return None, [casual(rng, text, "!")], FAREWELL
    if kind < 0.52:
        i, text = pick(rng, WHO)
        return None, [question(rng, text)], IDENTITY
    if kind < 0.62:
        i, text = pick(rng, ABLE)
        return None, [question(rng, text)], ABILITIES
    if kind < 0.68:
        i, text = pick(rng, [f"what is the capital of {c}" for c in UNKNOWN_COUNTRIES] + [f"capital of {c}" for c in UNKNOWN_COUNTRIES])
        return ("no capital", i), [question(rng, text)], REFUSAL
    if kind < 0.88:
        i, form = pick(rng, UNKNOWN)
        j, topic = pick(rng, TOPICS)
        return ("unknown", i, j), [command(rng, form.format(t=topic))], REFUSAL
    i, text = pick(rng, UNKNOWN_FIXED)
    return None, [question(rng, text)], REFUSAL


# ----------------------------------------------------------------------------- conversations


def follow_up(rng):
    """A second question that only makes sense after the first."""
    kind = rng.randrange(8)
    if kind == 0:
        room, state = rng.choice(ROOMS), rng.choice(("on", "off"))
        first = command(rng, f"turn {state} the {room} light")
        a1 = action("lights", room=room, state=state)
        if rng.random() < 0.5:
            other = rng.choice([r for r in ROOMS if r != room])
            second = casual(rng, rng.choice((f"and the {other}", f"now the {other}", f"also in the {other}", f"the {other} too", f"and in the {other}")), ".")
            return ("then", room, other, state), [first, a1, second], action("lights", room=other, state=state)
        new = "off" if state == "on" else "on"
        second = casual(rng, rng.choice((f"turn it {new} again", f"now turn it {new}", f"and {new} again", f"switch it {new}")), ".")
        return ("back", room, new), [first, a1, second], action("lights", room=room, state=new)
    if kind == 1:
        n, m = rng.randint(1, 60), rng.randint(1, 60)
        first = command(rng, rng.choice((f"set a timer for {n} minutes", f"timer {n} minutes", f"start a timer of {n} minutes")))
        second = casual(rng, rng.choice((f"make it {spoken(rng, m)} minutes", f"no, {spoken(rng, m)} minutes", f"change it to {spoken(rng, m)} minutes", f"{spoken(rng, m)} minutes instead")), ".")
        return ("timer", n, m), [first, action("timer", minutes=n), second], action("timer", minutes=m)
    if kind == 2:
        a, b = rng.sample(list(CAPITALS), 2)
        first = question(rng, f"what is the capital of {a}")
        second = casual(rng, rng.choice((f"and of {b}", f"and {b}", f"what about {b}", f"and the capital of {b}")), "?")
        return ("capitals", a, b), [first, f"The capital of {a} is {CAPITALS[a]}.", second], f"The capital of {b} is {CAPITALS[b]}."
    if kind == 3:
        phrase = rng.randrange(len(PHRASES))
        t1, t2 = rng.sample(range(1, 5), 2)
        first = casual(rng, f"how do you say {quoted(rng, PHRASES[phrase][0])} in {LANGUAGES[t1]}", "?")
        second = casual(rng, rng.choice((f"and in {LANGUAGES[t2]}", f"in {LANGUAGES[t2]}", f"what about {LANGUAGES[t2]}", f"now in {LANGUAGES[t2]}")), "?")
        return ("languages", phrase, t1, t2), [first, translated(phrase, t1), second], translated(phrase, t2)
    if kind == 4:
        a, b, n = rng.randint(0, 40), rng.randint(0, 40), rng.randint(1, 9)
        first = casual(rng, rng.choice((f"what is {a} plus {b}", f"{a} + {b}", f"{a} plus {b}")), "?")
        op = rng.choice("+-") if a + b >= n else "+"
        result = a + b + n if op == "+" else a + b - n
        name = "plus" if op == "+" else "minus"
        second = casual(rng, rng.choice((f"{name} {n}", f"and {name} {n}", f"{op} {n}", f"now {name} {n}")), "?")
        return ("sum", a + b, op, n), [first, f"{a} + {b} = {a + b}", second], f"{a + b} {op} {n} = {result}"
    if kind == 5:
        state, text = a_state(rng)
        q1, a1, _ = state_question(rng, state)
        q2, a2, field = state_question(rng, state)
        q1, q2 = casual(rng, q1, "?"), casual(rng, q2, "?")
        key = ("states", tuple(sorted(state.items())), field)
        if rng.random() < 0.6:
            return key, [("system", text + "."), q1, a1, q2], a2
        return key, [f"{text}. {q1}", a1, q2], a2
    if kind == 6:
        level, other = rng.randint(0, 100), rng.randint(0, 100)
        first = command(rng, rng.choice((f"set the volume to {level}", f"volume {level}", f"change the volume to {level}")))
        second = casual(rng, rng.choice((f"no, {other}", f"make it {other}", f"{other} is better", f"change it to {other}")), ".")
        return ("levels", level, other), [first, action("volume", level=level), second], action("volume", level=other)
    room, other = rng.sample(ROOMS, 2)
    color = rng.choice(COLORS)
    first = command(rng, f"make the {room} light {color}")
    a1 = action("lights", room=room, color=color)
    if rng.random() < 0.5:
        second = casual(rng, rng.choice((f"and the {other}", f"the {other} too", f"also in the {other}", f"now the {other}")), ".")
        return ("colors", room, other, color), [first, a1, second], action("lights", room=other, color=color)
    new = rng.choice([x for x in COLORS if x != color])
    second = casual(rng, rng.choice((f"make it {new}", f"no, {new}", f"change it to {new}", f"{new} is better")), ".")
    return ("recolor", room, color, new), [first, a1, second], action("lights", room=room, color=new)


# The skills and their shares of the training split; what has to be computed takes the most practice.
SKILLS = {
    "action": (act, 14),
    "arithmetic": (arithmetic, 26),
    "units": (units, 12),
    "time": (times, 22),
    "translate": (translate, 18),
    "facts": (facts, 9),
    "state": (device_state, 9),
    "chat": (chat, 5),
    "follow-up": (follow_up, 9),
}


def to_messages(turns):
    """Chat messages of a list of turns; a leading ("system", text) becomes a system message."""
    messages = []
    if isinstance(turns[0], tuple):
        messages.append({"role": "system", "content": turns[0][1]})
        turns = turns[1:]
    for i, text in enumerate(turns):
        messages.append({"role": "user" if i % 2 == 0 else "assistant", "content": text})
    return messages


def example(rng, skill, want_held_out):
    """One example of a skill from the wanted split."""
    while True:
        key, turns, answer = SKILLS[skill][0](rng)
        if held_out((skill, key or turns)) == want_held_out:
            return turns, answer


def conversation(rng, longest):
    """Several examples in a row in one chat, as a user's session is."""
    turns, answer, total = None, None, rng.randint(2, longest)
    for _ in range(total):
        skill = rng.choices(list(SKILLS), [w for _, w in SKILLS.values()])[0]
        more, new = example(rng, skill, False)
        if turns is not None and isinstance(more[0], tuple):
            more = [f"{more[0][1]} {more[1]}"] + list(more[2:])
        turns = list(more) if turns is None else turns + [answer] + list(more)
        answer = new
    return turns, answer


def training_examples(count, seed, forbidden=frozenset()):
    """The training split: single examples, and conversations in which they follow each other.

    `forbidden` holds the single-turn prompts of the held-out file: the first half of a follow-up
    can hit one of them by chance, and such an example is dropped.
    """
    rng = random.Random(seed)
    names, weights = list(SKILLS), [w for _, w in SKILLS.values()]
    while count > 0:
        kind = rng.random()
        if kind < 0.88:
            skill = rng.choices(names, weights)[0]
            turns, answer = example(rng, skill, False)
        elif kind < 0.98:
            skill, (turns, answer) = "conversation", conversation(rng, 4)
        else:
            skill, (turns, answer) = "conversation", conversation(rng, 14)
        messages = to_messages(turns)
        if not any(m["content"] in forbidden for m in messages):
            count -= 1
            yield {"messages": messages, "answer": answer, "skill": skill}


def held_out_examples(per_skill, seed):
    """The held-out split, the same number of each skill, without repeats."""
    rng = random.Random(seed)
    for skill in SKILLS:
        seen = set()
        while len(seen) < per_skill:
            turns, answer = example(rng, skill, True)
            text = repr(turns)
            if text not in seen:
                seen.add(text)
                yield {"messages": to_messages(turns), "answer": answer, "skill": skill}


def write(path, examples):
    with open(path, "w", encoding="utf-8") as out:
        for e in examples:
            out.write(json.dumps(e, ensure_ascii=False) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--train", type=Path, help="write the training split here (JSON lines)")
    p.add_argument("--count", type=int, default=400_000, help="examples in the training split")
    p.add_argument("--eval", type=Path, help="write the held-out split here")
    p.add_argument("--per-skill", type=int, default=50, help="held-out examples of each skill")
    p.add_argument("--show", type=int, default=0, help="print this many training examples")
    p.add_argument("--seed", type=int, default=2711)
    a = p.parse_args()
    held = list(held_out_examples(a.per_skill, a.seed + 1))
    forbidden = frozenset(e["messages"][0]["content"] for e in held if len(e["messages"]) == 1)
    if a.train:
        write(a.train, training_examples(a.count, a.seed, forbidden))
    if a.eval:
        write(a.eval, held)
    for e in training_examples(a.show, a.seed + 2):
        print(json.dumps(e, ensure_ascii=False))


if __name__ == "__main__":
    main()
